"""Mistakes that a user can mend: each message is one line that names the culprit and what is allowed."""


class UserError(ValueError):
    """Base of all; the command line prints it without a traceback and exits with 2."""


class ConfigError(UserError):
    """A setting or option is unknown, impossible, or would bias the estimate."""


class SiteError(UserError):
    """The network cannot be trained as it is."""


class NoGradientError(UserError):
    """A derivative is asked for where there is none, or it is zero everywhere."""


class CheckpointError(UserError):
    """A checkpoint file is missing or damaged."""


class ClusterError(UserError):
    """The cluster has no place for what is asked, or its actors or workers are gone."""
