"""Names and texts that come from outside: as a folder's name, in a terminal, in a spreadsheet."""

import re
import unicodedata

from tasks.errors import InputError

# What most file systems take as the name of one file or folder.
LONGEST = 255
# Invisible, and part of how emoji and several scripts are written.
JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}
# Categories of Unicode: control and format characters, surrogates, separators of lines.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# What a spreadsheet reads as the beginning of a formula.
FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def printable(text: str) -> str:
    r"""Escape what would break a line, move a terminal's cursor or turn the direction of a text.

    Example:
        >>> print(printable("two\nlines, \x1b[31mred, \u202eturned, ☃"))
        two\nlines, \x1b[31mred, \u202eturned, ☃
    """
    return "".join(
        letter.encode("unicode_escape").decode()
        if unicodedata.category(letter) in UNPRINTABLE and letter not in JOINERS
        else letter
        for letter in text
    )


def spreadsheet_text(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would compute as a formula.

    Example:
        >>> spreadsheet_text("=1+1"), spreadsheet_text("a = 1"), spreadsheet_text("-0.5")
        ("'=1+1", 'a = 1', '-0.5')
    """
    if not FORMULA.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


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
