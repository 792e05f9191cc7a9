"""The one exception that the command-line tools turn into exit code 2."""


class UserInputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one sentence that names what was wrong and what to do. The
    command-line tools print it without a traceback and exit with code 2.
    """
