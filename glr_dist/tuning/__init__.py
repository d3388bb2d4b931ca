"""The search for good settings by Ray Tune: spaces, trials, and what they leave behind."""
