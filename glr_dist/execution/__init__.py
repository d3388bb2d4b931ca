"""Executors: where work items are computed. The results never depend on it."""
