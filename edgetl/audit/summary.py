"""What an audit found, in words: the same on the terminal and at the head of the page."""

from collections import Counter
from dataclasses import dataclass

from edgetl.audit.findings import Audit, CopyGroup, Kind, Shift

SIGNIFICANT = 0.01
"""A shift is named where chance alone would show it in fewer of so many data sets."""
IMBALANCED = 10.0
"""Photos of the largest class against the smallest from which on it is a finding."""
_KINDS: dict[Kind, str] = {
    "unreadable": "can't be read",
    "blank": "are blank",
    "dark": "are dark",
    "bright": "are washed out",
    "blurry": "are blurry",
    "odd_aspect": "have an odd shape",
    "odd_size": "have an odd size",
    "odd_file": "are stored oddly",
}


@dataclass(frozen=True)
class Line:
    """One thing that was found, or was looked for in vain."""

    section: str
    """Where the page shows it."""
    photos: int
    text: str


def lines(audit: Audit) -> list[Line]:
    """Say what was found, what matters most first; nothing is said of what was not found."""
    leaks = [group for group in audit.copies if group.leaks]
    contradictions = [group for group in audit.copies if group.contradicts]
    exact = [group for group in audit.copies if group.exact]
    near = [group for group in audit.copies if not group.exact]
    kinds = Counter(finding.kind for finding in audit.findings)
    found = [
        Line("copies", _members(leaks), "are copies of a photo in another split: figures would say too much"),
        Line("copies", _members(contradictions), "are copies with different labels"),
        Line("copies", _members(exact), f"are exact copies, in {len(exact)} group(s)"),
        Line("copies", _members(near), f"are near copies, in {len(near)} group(s)"),
        *(Line(kind, kinds[kind], text) for kind, text in _KINDS.items()),
        Line("labels", len(audit.labels), "have a label that the photos like them speak against"),
    ]
    if audit.imbalance >= IMBALANCED:
        found.append(
            Line("classes", 0, f"the largest class has {audit.imbalance:.0f} times the photos of the smallest")
        )
    found += [Line("shift", 0, shift_text(each)) for each in audit.shifts if each.p_value < SIGNIFICANT]
    return [line for line in found if line.photos or line.section in ("classes", "shift")]


def shift_text(shift: Shift) -> str:
    """Say how well two parts can be told apart."""
    told = "can" if shift.p_value < SIGNIFICANT else "can't"
    chance = "p < 0.0001" if shift.p_value < 1e-4 else f"p = {shift.p_value:.2g}"
    return (
        f"{shift.first} and {shift.second} {told} be told apart: {100 * shift.accuracy:.1f} % of "
        f"{shift.samples} photos told rightly, 50 % is chance ({chance})"
    )


def _members(groups: list[CopyGroup]) -> int:
    return sum(len(group.members) for group in groups)
