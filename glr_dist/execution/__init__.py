"""Executors: they compute the work items of a step in one process or many, with the same result."""
