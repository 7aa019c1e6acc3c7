"""Faults a person can mend. Each message names what came, what is allowed and the remedy."""


class CocuError(Exception):
    """Shown to the user as one line, never as a traceback."""


class ConfigError(CocuError):
    """A configuration that does not describe a run."""


class StoreError(CocuError):
    """An artifact store that cannot be read or written, or that holds something it should not."""


class InputError(CocuError):
    """Data, weights or paths from outside that cannot be used."""
