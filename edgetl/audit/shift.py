"""Are two parts of a data set alike? The classifier two-sample test (Lopez-Paz, Oquab, ICLR 2017, arXiv 1610.06545).

A classifier learns on half of the photos which part a photo is from, and is tested on the other half. If both parts are
drawn alike it is right half of the time, give or take; how unlikely more is, the binomial distribution says.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgetl.audit.findings import Shift
from edgetl.data import Examples, SplitName
from edgetl.rows import RowsLike

PER_PART = 2000
"""At most so many photos of each part: enough to tell an accuracy of 0.53 from chance."""
FEWEST = 20
"""Below so many photos of each part nothing can be told."""
INVERSE_L2 = 1e-3
"""A strength that suits a few thousand features rows; choosing it on the tested half would spoil the p-value."""
_TELLING = 12


def between(features: RowsLike, examples: Examples, first: SplitName, second: SplitName, seed: int = 0) -> Shift | None:
    """Test whether photos of two given splits can be told apart.

    Both parts are drawn with equal numbers of each class, so that another mix of classes is not taken for other photos.
    Of each group one photo is drawn: who is known from the learned half is no evidence in the tested one.

    Args:
        features: [n, d].
        examples: theirs, with the splits that the data set brings. Copies should be left out.
        first: one split.
        second: the other.
        seed: of the draw.

    Returns:
        None where a part has too few photos.
    """
    from scipy.stats import binomtest

    from edgetl.probe import fit_linear_probe

    rows, is_second = _balanced(examples, first, second, np.random.default_rng(seed))
    if len(rows) < 2 * FEWEST:
        return None
    fit, held = rows[::2], rows[1::2]
    probe = fit_linear_probe(features[fit], is_second[::2], features[held], is_second[1::2], inverse_l2=(INVERSE_L2,))
    probability = probe.outputs(features[held])[:, 1]
    right = int(((probability > 0.5) == is_second[1::2]).sum())
    telling = [held[i] for i in np.argsort(-probability) if is_second[1::2][i] and probability[i] > 0.5][:_TELLING]
    return Shift(
        first=first,
        second=second,
        accuracy=right / len(held),
        p_value=float(binomtest(right, len(held), alternative="greater").pvalue),
        samples=len(held),
        telling=tuple(examples.items[row].id for row in telling),
    )


def _balanced(
    examples: Examples, first: SplitName, second: SplitName, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions, and 1 for those of the second part: as many of each part and stratum; every other of them likewise."""
    splits = np.full(len(examples), "", dtype="U10")
    for index in _one_of_each_group(examples, rng):
        splits[index] = examples.items[index].split or ""
    parts: list[NDArray[np.int64]] = []
    sizes = min(int((splits == name).sum()) for name in (first, second))
    share = min(1.0, PER_PART / max(1, sizes))
    for stratum in np.unique(examples.strata):
        both = [np.flatnonzero((splits == name) & (examples.strata == stratum)) for name in (first, second)]
        count = int(min(len(part) for part in both) * share) // 2 * 2
        drawn = [rng.permutation(part)[:count].reshape(-1, 2) for part in both]
        parts.append(np.stack(drawn, 1).reshape(-1, 4))
    quads = np.concatenate(parts) if parts else np.zeros((0, 4), np.int64)  # first, first, second, second
    return quads.ravel(), np.tile(np.array([0, 0, 1, 1]), len(quads))


def _one_of_each_group(examples: Examples, rng: np.random.Generator) -> Iterable[int]:
    """Positions of photos that have nothing to do with one another; those of no group all."""
    drawn: dict[tuple[bool, str], int] = {}
    for index in rng.permutation(len(examples)).tolist():
        item = examples.items[index]
        drawn.setdefault((True, item.group) if item.group else (False, item.id), index)
    return drawn.values()
