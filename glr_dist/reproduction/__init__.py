"""Reproduction of the paper: all of its models with several seeds, evaluated, and a table beside the published one."""
