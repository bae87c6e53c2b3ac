"""The one exception a person is meant to read: its text is shown alone, without a traceback."""


class UserError(ValueError):
    """Bad input from a person: one sentence naming the field or file, the value found and the value expected."""


class Failed(Exception):
    """A job that did its work and found that the answer is no: its one line is printed and the exit code is 1."""
