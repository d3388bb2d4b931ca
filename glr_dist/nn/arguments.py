"""Checks of the arguments of networks: one line that names the network, the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence

from glr_dist.errors import ConfigError
from glr_dist.text import shown


def check_counts(network: str, least: int = 1, **values: object) -> None:
    """Refuses arguments that are not integers of at least `least`.

    Raises:
        ConfigError: names the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _refused(network, name, value, f"an integer >= {least}")


def check_widths(network: str, **values: object) -> None:
    """Refuses arguments that are not lists of integers >= 1.

    Raises:
        ConfigError: names the argument.
    """
    for name, value in values.items():
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _refused(network, name, value, "a list of integers >= 1")
        for each in value:
            check_counts(network, **{name: each})


def check_between(network: str, low: float, high: float, **values: object) -> None:
    """Refuses arguments that are not numbers from `low` to `high`.

    Raises:
        ConfigError: names the argument.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _refused(network, name, value, f"a number from {low:g} to {high:g}")


def check_image(network: str, shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """Returns (C, H, W), the shape of an image.

    Raises:
        ConfigError: the shape is another one, or a side is shorter than `least`.
    """
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ConfigError(
            f"{network}: inputs of shape {list(shape)} are not allowed: images [C, H, W] of at least "
            f"{least} x {least} pixels"
        )
    channels, height, width = shape
    return channels, height, width


def _refused(network: str, name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"{network}: {name} {shown(value)} is not allowed: {allowed}")
