"""Robustness: attacks, corruptions, and one report on what they leave of the accuracy."""
