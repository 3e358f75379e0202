"""Lines for terminals that hold names of strangers' files. Devices need it too: it imports nothing of ours."""

import re

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2060\ufeff\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, line breaks, what turns the direction of writing or has no width, and halves of characters."""
_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Of these what a file with one name a line can't hold."""


def printable(line: str) -> str:
    """Write out what steers a terminal: the name of a file must not forge a line, hide one or colour it."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def is_line(text: str) -> bool:
    """Whether a file can hold text as one line: no line break or other control character, no half of a character."""
    return not _NO_LINE.search(text)
