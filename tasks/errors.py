"""The errors that a user can cause and mend."""

from tasks.plain_text import printable


class InputError(Exception):
    """Something that the user gave cannot be used; the message names it and says how to mend it.

    The command line prints it as one line and exits with code 2.
    """

    def __str__(self) -> str:
        """Return one line, whatever the names of files and classes in it hold."""
        return printable(super().__str__())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its kind where it has none.

    Example:
        >>> first_line(ValueError("no such file")), first_line(EOFError())
        ('no such file', 'EOFError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
