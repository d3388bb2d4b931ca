"""Certificates: robustness that is proven, by randomised smoothing (L2) or by bounds (L∞)."""
