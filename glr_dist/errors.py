"""Errors that a user can fix. The message is one line that names the cause and what is allowed."""

from glr_dist.redaction import redact
from glr_dist.text import shortened

_LONGEST = 500  # characters of a message


class UserError(ValueError):
    """Base class: the command line prints the message and exits with 2. The message is one line without credentials."""

    def __init__(self, message: str) -> None:
        line = " ".join(part.strip() for part in redact(message).splitlines())
        super().__init__(shortened(line, _LONGEST))


class ConfigError(UserError):
    """A setting or option is unknown, impossible, or would bias the estimate."""


class SiteError(UserError):
    """The network cannot be trained as it is."""


class NoGradientError(UserError):
    """A derivative is needed where it does not exist or is zero everywhere."""


class ZeroGradientError(NoGradientError):
    """A derivative exists, but is zero or not finite for every example of a block."""


class CheckpointError(UserError):
    """A checkpoint file is missing or damaged."""


class ClusterError(UserError):
    """The cluster cannot be joined, has no room for the actors, lost them, or runs different software."""


class TrackingError(UserError):
    """A tracking server cannot be reached, or refuses a request."""
