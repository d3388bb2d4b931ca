"""Verification of a network: a few small passes show that it is what the estimates rely on.

A wrong gradient looks like any other, so these passes run before the first step, and again when the network has
changed. Whatever fails is an error that names the module.
"""

from glr_dist.verification.verify import verify

__all__ = ["verify"]
