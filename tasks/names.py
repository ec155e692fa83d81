"""Names that become the names of folders."""

from tasks.errors import InputError
from tasks.plain_text import printable

# What most file systems take as the name of one file or folder.
LONGEST = 255


def check_folder_name(name: str, what: str) -> None:
    """Check that a name is that of one folder, so that what is in it stays where it belongs.

    Args:
        name: The name.
        what: What it is called in an error, such as NAME.

    Raises:
        InputError: It leads elsewhere, or no folder can have it.

    Example:
        >>> check_folder_name("../../x", "NAME")
        Traceback (most recent call last):
        ...
        tasks.errors.InputError: NAME='../../x' leads to another folder; give a name without /
    """
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"{what}={name!r:.80} leads to another folder; give a name without /")
    if name != printable(name):
        raise InputError(f"{what}={name!r:.80} holds characters that cannot be printed")
    if len(name.encode()) > LONGEST:
        raise InputError(
            f"{what}={name[:60]}... has {len(name.encode())} bytes, more than the {LONGEST} "
            "that a folder's name can have; give a shorter one"
        )
