"""Texts that come from outside: in a terminal and in a spreadsheet."""

import re
import unicodedata

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
