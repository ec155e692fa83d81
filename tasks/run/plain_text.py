"""Text for terminals, spreadsheets and pages: escapes, and paths without their folders."""

import re
import unicodedata

# Invisible characters that emoji and several scripts need: joiners and tags.
JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}
# Unicode categories: control and format characters, surrogates, line and paragraph separators.
UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
# First characters of a formula in a spreadsheet.
FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def printable(text: str) -> str:
    r"""Escape line breaks, terminal control sequences and characters that change text direction.

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
    """Prepend an apostrophe to text that a spreadsheet would evaluate as a formula.

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


def without_folders(text: str) -> str:
    """Replace the folder of each absolute path, which nobody else has.

    Example:
        >>> without_folders("DATA=/home/me/data/birds --config=../own.yaml")
        'DATA=path/to/birds --config=../own.yaml'
    """
    return re.sub(r"(?<![\w.~/:-])/(?:[^\s/=,\"']+/)+", "path/to/", text)
