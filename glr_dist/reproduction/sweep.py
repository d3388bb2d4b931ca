"""A setting whose values a reproduction compares, such as the scale of the noise on the inputs. Imports no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from glr_dist.config import overridden
from glr_dist.errors import ConfigError
from glr_dist.text import shown


@dataclass(frozen=True)
class Sweep:
    """A setting and its values: every model is trained with each of them.

    Attributes:
        setting: its dotted name, such as "noise.input.scale".
        values: its values.
    """

    setting: str
    values: tuple[Any, ...]

    def override(self, value: Any) -> str:
        """Returns the override of a configuration that sets a value."""
        return f"{self.setting}={json.dumps(value)}"

    def described(self) -> dict[str, Any]:
        """Returns the sweep as JSON values."""
        return {"setting": self.setting, "values": list(self.values)}


_OWN = ("seed", "data.name", "execution", "robustness", "tracking")  # what a reproduction sets itself


def label(value: Any) -> str:
    """Returns a value as tables, plots and names of folders show it, such as "0.3" or "scale-0.5-ramp-10"."""
    text = json.dumps(value)
    return text if isinstance(value, float | int) else re.sub(r"[^\w.]+", "-", text).strip("-") or "empty"


def sweep_of(text: str) -> Sweep:
    """Returns the sweep that the text `setting=[value, value, …]` describes.

    Raises:
        ConfigError: the text has another form, two values have one label, or the reproduction sets the setting itself.
    """
    setting, _, written = (part.strip() for part in text.partition("="))
    values = overridden({}, [f"--over={written}"])["--over"] if setting and written else None
    if not isinstance(values, list) or len(values) < 2:
        raise ConfigError(f"--over: {shown(text)} is not allowed: it must have the form SETTING=[VALUE, VALUE, …]")
    try:
        labels = [label(value) for value in values]
    except TypeError as error:
        raise ConfigError(f"--over: {shown(text)} is not allowed ({error})") from None
    if any(setting == own or setting.startswith(f"{own}.") for own in _OWN) and setting != "execution.compile":
        raise ConfigError(f"--over: {setting} is not allowed: a reproduction sets it itself")
    if twice := next((each for each in labels if labels.count(each) > 1), None):
        raise ConfigError(f"--over: {shown(text)} is not allowed: two values have the name {twice}")
    return Sweep(setting, tuple(values))
