"""Model output for a terminal: escape sequences and other control characters are made visible."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def printable(text: str) -> str:
    """Return a text in which control characters, which could move the cursor or change the terminal, are visible.

    Line breaks and tabs stay. Directional overrides of Unicode are shown as escapes, too.
    """
    visible = _CONTROL.sub(lambda match: _visible(match.group()), text.replace("\r\n", "\n"))
    return _SURROGATES.sub("\ufffd", visible)


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\\u{code:04x}"
