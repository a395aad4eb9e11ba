"""What a person is told when something cannot be done: the value, the rule, the remedy."""


class SdpipeError(Exception):
    """The root of every error that sdpipe raises on purpose. Command line: exit status 1."""


class UsageError(SdpipeError, ValueError):
    """A value that a person gave breaks a rule. Command line: exit status 2."""


class ModelError(SdpipeError):
    """A model cannot be found, fetched or read, or what it was asked for does not fit it."""


class NotFiniteError(SdpipeError):
    """A stage produced NaN or infinity; the message names the stage and the way out."""


class SdpipeWarning(UserWarning):
    """The work goes on, but a person should know: a prompt was cut, latents grew too large."""
