"""The one error that a user is meant to see."""


class InputError(ValueError):
    """Something from outside is wrong: a flag, a config, a file, a checkpoint, an environment.

    The message is one line that says what was given, what was expected and what to do next. The command line prints
    it without a traceback and exits with code 2. Invariants inside the toolkit assert instead.
    """
