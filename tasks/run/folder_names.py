"""Checks of names that are used as folder names."""

from tasks.errors import InputError
from tasks.run.plain_text import printable

# Longest file name, in bytes, on most file systems.
MAX_BYTES = 255


def check_folder_name(name: str, what: str) -> None:
    """Check that a name is valid as the name of a single folder, and not a path.

    Args:
        name: The name.
        what: The option, for the error message, such as NAME.

    Raises:
        InputError: The name is a path, too long, or has control characters.

    Example:
        >>> check_folder_name("../../x", "NAME")
        Traceback (most recent call last):
        ...
        tasks.errors.InputError: NAME='../../x' leads to another folder; give a name without /
    """
    if "/" in name or name in ("", ".", ".."):
        raise InputError(f"{what}={name!r:.80} leads to another folder; give a name without /")
    if name != printable(name):
        raise InputError(f"{what}={name!r:.80} contains control characters; remove them")
    if len(name.encode()) > MAX_BYTES:
        raise InputError(
            f"{what}={name[:60]}... has {len(name.encode())} bytes, more than the {MAX_BYTES} "
            "that a folder name may have; give a shorter one"
        )
