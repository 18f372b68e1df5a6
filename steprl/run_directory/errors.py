"""The error of this room."""


class RunDirectoryError(ValueError):
    """A run cannot be opened: its directory, its name, its settings or another process forbid it."""
