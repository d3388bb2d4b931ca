"""Wording shared by error messages: one line of an error, shortened values, and the nearest known name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from glr_dist.redaction import redact

_SHOWN = 5  # known names that a message lists


def one_line(error: object, limit: int = 300) -> str:
    """Returns the text of an error as one line of at most `limit` characters, without terminal colours.

    Secrets that this process knows are replaced. An error without text gives the name of its class. A long
    text keeps its end, where the cause stands.
    """
    text = " ".join(re.sub(r"\x1b\[[\d;]*m", "", redact(str(error))).split())
    text = text or type(error).__name__
    return text if len(text) <= limit else f"…{text[1 - limit :]}"


def shown(value: object, limit: int = 80) -> str:
    """Returns the value as Python writes it, its middle left out beyond `limit` characters."""
    return shortened(redact(repr(value)), limit)  # a secret that is cut would not be recognized


def shortened(text: str, limit: int) -> str:
    """Returns the text, its middle left out beyond `limit` characters."""
    if len(text) <= limit:
        return text
    end = (limit - 1) // 3
    return f"{text[: limit - 1 - end]}…{text[len(text) - end :]}"


def hint(name: str, known: Iterable[str], *, listed: str = "known are") -> str:
    """Returns "did you mean 'x'?" for the nearest of the `known` names, else the names themselves.

    Args:
        name: what the user wrote.
        known: the names that exist, in the order in which they are listed.
        listed: the words before the list.
    """
    names = list(known)
    if not names:
        return "none is known"
    folded = {each.lower(): each for each in names}
    if near := difflib.get_close_matches(name.lower(), folded, 1):
        return f"did you mean '{folded[near[0]]}'?"
    if len(names) > 20:
        nearest = difflib.get_close_matches(name.lower(), folded, _SHOWN, cutoff=0.3) or sorted(folded)[:_SHOWN]
        return f"nearest are {', '.join(folded[each] for each in nearest)}"
    return f"{listed} {', '.join(names)}"
