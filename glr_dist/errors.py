"""Mistakes that a user can mend: each message is one line that names the culprit and what is allowed."""

import re

_CREDENTIALS = re.compile(r"(?<=://)[^\s/@:'\"]*(:[^\s'\"]*)?@")


def without_credentials(text: str) -> str:
    """A text with the `user:password@` of every URI in it left out: `https://me:secret@host` is `https://host`."""
    return _CREDENTIALS.sub("", text)


class UserError(ValueError):
    """Base of all; the command line prints it without a traceback and exits with 2. Shows no credentials."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class ConfigError(UserError):
    """A setting or option is unknown, impossible, or would bias the estimate."""


class SiteError(UserError):
    """The network cannot be trained as it is."""


class NoGradientError(UserError):
    """A derivative is asked for where there is none, or it is zero everywhere."""


class ZeroGradientError(NoGradientError):
    """A derivative that there is, but that is zero, or not finite, for every example of a block."""


class CheckpointError(UserError):
    """A checkpoint file is missing or damaged."""


class ClusterError(UserError):
    """The cluster has no place for what is asked, or its actors or workers are gone."""


class TrackingError(UserError):
    """A tracking server is out of reach, or refuses what it is sent."""
