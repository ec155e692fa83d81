"""Errors in the user's input."""

from tasks.run.plain_text import printable


class InputError(Exception):
    """Invalid input of the user; the message names the value and the fix.

    The command line prints it as one line and exits with code 2.
    """

    def __str__(self) -> str:
        """Return one line; control characters in names of files and classes are escaped."""
        return printable(super().__str__())


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty.

    Example:
        >>> first_line(ValueError("no such file")), first_line(EOFError())
        ('no such file', 'EOFError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]
