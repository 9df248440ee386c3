"""The `manta` command. `main.py` lists what it can do; start-up imports neither torch nor Ray."""
