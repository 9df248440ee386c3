"""A DeepSeek-style mixture-of-experts decoder."""
