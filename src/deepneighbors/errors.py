"""Errors that a user can act on."""


class InputError(ValueError):
    """A value that the library cannot accept; the message is one sentence that names it and says what is allowed."""
