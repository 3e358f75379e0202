"""What the numbers that come out of a model stand for: edgetl's OutputSpec, as a device reads it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

METRICS = {"classification": "top-1", "ordinal": "top-1", "multi_label": "F1", "regression": "R2"}
"""Task -> short name of its primary metric: a fraction, at most 1."""
KINDS = {"classification": "class", "ordinal": "class", "multi_label": "label", "regression": "target"}
"""Task -> what one of its names is."""


@dataclass(frozen=True)
class Outputs:
    """What a model says of a photo."""

    task: str
    """`classification`, `ordinal`, `multi_label` or `regression`."""
    names: tuple[str, ...]
    """Of the classes (ordinal: from low to high), the labels or the targets; the position is the output index."""
    thresholds: tuple[float, ...]
    """multi_label: a label is said from this score on, 0..1."""
    deviations: tuple[float, ...]
    """regression: standard deviation of each target among the training photos, in its own unit."""

    def refuse(self) -> None:
        """Refuse what can't be read.

        Raises:
            ValueError: an unknown task; names that are missing or not text; not one number per name, or one out of its
                range.
        """
        if self.task not in KINDS:
            raise ValueError(f"outputs.task {self.task!r:.40}, this program knows {', '.join(KINDS)}")
        if not self.names:
            raise ValueError("outputs.names are missing")
        "".join(self.names).encode("utf-8")  # JSON can spell half a character, on which printing would fail later
        for task, field, found in (
            ("multi_label", "thresholds", self.thresholds),
            ("regression", "deviations", self.deviations),
        ):
            if len(found) != (len(self.names) if self.task == task else 0):
                raise ValueError(f"outputs.{field}: {len(found)} for {len(self.names)} names of task {self.task}")
        if not all(0 <= each <= 1 for each in self.thresholds):
            raise ValueError("outputs.thresholds are not all 0..1")
        if not all(each > 0 for each in self.deviations):
            raise ValueError("outputs.deviations are not all above 0")

    @property
    def kind(self) -> str:
        """What one of the names is: `class`, `label` or `target`."""
        return KINDS[self.task]

    @property
    def metric(self) -> str:
        """Short name of the primary metric."""
        return METRICS[self.task]

    def said(self, scores: Sequence[float]) -> dict[str, float]:
        """What one row of outputs says: the best class, the labels that reach their thresholds, or all targets.

        Returns:
            Name -> its number.
        """
        pairs = dict(zip(self.names, scores))  # noqa: B905 (Python 3.9 has no strict)
        if self.task == "regression":
            return pairs
        if self.task == "multi_label":
            least = dict(zip(self.names, map(_single, self.thresholds)))  # noqa: B905
            return {name: score for name, score in pairs.items() if score >= least[name]}
        best = max(pairs, key=lambda name: pairs[name])
        return {best: pairs[best]}

    def distance(self, one: Sequence[float], other: Sequence[float]) -> float:
        """Largest difference between two rows of outputs: of a score; of a target, in its deviations."""
        units = self.deviations or (1.0,) * len(self.names)
        return max(abs(a - b) / unit for a, b, unit in zip(one, other, units))  # noqa: B905

    def primary(self, truths: Sequence[Sequence[float]], rows: Sequence[Sequence[float]]) -> float:
        """The primary metric of rows of outputs, as edgetl's scorer defines it.

        Args:
            truths: what is right, a number for each name: 1 for the class or the labels that are true, else 0; values.
            rows: of the model, as many.
        """
        if self.task == "multi_label":
            return self._f1(truths, rows)
        if self.task == "regression":
            return _mean([_r2(*columns) for columns in zip(zip(*truths), zip(*rows))])  # noqa: B905
        return _mean([set(self.said(row)) == set(self.right(truth)) for truth, row in zip(truths, rows)])  # noqa: B905

    def right(self, truth: Sequence[float]) -> dict[str, float]:
        """What is true of a photo, as `said` puts it: its class or its labels, with 1; or the values of all targets."""
        pairs = zip(self.names, truth)  # noqa: B905
        return {name: value for name, value in pairs if value or self.task == "regression"}

    def _f1(self, truths: Sequence[Sequence[float]], rows: Sequence[Sequence[float]]) -> float:
        """Mean over the labels; 0 for one that is neither true nor said anywhere."""
        said, true = [set(self.said(row)) for row in rows], [set(self.right(truth)) for truth in truths]
        found = []
        for name in self.names:
            both = sum(name in a and name in b for a, b in zip(said, true))  # noqa: B905
            either = sum(name in a for a in said) + sum(name in a for a in true)
            found.append(2 * both / either if either else 0.0)
        return _mean(found)


def _single(number: float) -> float:
    """The nearest float32, which is what scores are compared as."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _r2(truth: Sequence[float], found: Sequence[float]) -> float:
    """Coefficient of determination; of a target that is everywhere the same, 1 where it is met and else 0."""
    mean = sum(truth) / len(truth)
    total = sum((each - mean) ** 2 for each in truth)
    missed = sum((a - b) ** 2 for a, b in zip(truth, found))  # noqa: B905
    return 1 - missed / total if total else float(not missed)
