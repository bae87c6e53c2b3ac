"""The one exception a person is meant to read: its text is shown alone, without a traceback."""


class UserError(ValueError):
    """Bad input from a person: one sentence naming the field or file, the value found and the value expected."""
