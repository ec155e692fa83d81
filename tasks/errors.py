"""The errors that a user can cause and mend."""


class InputError(Exception):
    """Something that the user gave cannot be used; the message names it and says how to mend it.

    The command line prints it as one line and exits with code 2.
    """
