"""Hyperparameter search with Ray Tune: search spaces, trials, population-based training, and the files of a search."""
