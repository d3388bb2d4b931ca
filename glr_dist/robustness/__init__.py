"""Robustness: attacks, corruptions, and a report of the accuracy that remains."""
