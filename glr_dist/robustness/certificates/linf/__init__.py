"""L∞ certificates of networks without noise, by intervals and by mixed-integer programs."""
