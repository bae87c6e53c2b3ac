"""Names of files and folders as printable text: one line of UTF-8, different if they differ."""

import os
import unicodedata

_ESCAPED = ("Cc", "Cs", "Zl", "Zp")  # Control characters, surrogates, line and paragraph separators


def printable(name: str) -> str:
    r"""The name with each unprintable character as a backslash and its code.

    Bytes that are not UTF-8, which Python has as surrogates, become `\xe9`, a line break `\n`: a
    folder named in Latin-1 can be written to a JSON file and a log. Different names stay different;
    ordinary ones stay as they are.
    """
    if "\\" not in name and all(unicodedata.category(letter) not in _ESCAPED for letter in name):
        return name
    return "".join(map(_escaped, name))


def _escaped(letter: str) -> str:
    code, category = ord(letter), unicodedata.category(letter)
    if letter == "\\" or (category == "Cc" and code < 0x80):
        return letter.encode("unicode_escape").decode()
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{os.fsencode(letter)[0]:02x}"
    return f"\\u{code:04x}" if category in _ESCAPED else letter
