"""The exceptions a person is meant to read: their text is shown alone, without a traceback."""


class UserError(ValueError):
    """Bad input from a person: one sentence naming the field or file, the value found and the value expected."""


class Failed(Exception):
    """A job that did its work and found that the answer is no: its one line is printed and the exit code is 1."""


class Preempted(Exception):
    """A job that was told to stop and has kept what it did: its one line is printed and the exit code is 143."""
