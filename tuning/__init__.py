"""Hyperparameter search over training jobs will live here; this release has none."""
