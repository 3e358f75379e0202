"""Photos that are there twice: byte for byte, or encoded or resized anew.

Copies are looked for by a 64-bit perceptual hash (DCT of the photo at 32x32, signs of the lowest 8x8), all against all
in blocks, and then confirmed on grey thumbnails: hashes alone would call many cells of `elpv` copies of one another.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgetl.audit.findings import Copy, CopyGroup, given_split
from edgetl.audit.looks import Looks

MAX_BITS = 10
"""Bits of 64 by which the hashes of copies may differ: of 300 copies of `elpv` photos, resized to 0.4-1.6 and encoded
at JPEG quality 40-90, all were within 10 and 98 % within 2."""
MAX_RESIDUAL = 0.055
"""How far thumbnails of copies may lie apart, of their contrast: see `residuals`."""
MAX_COLOUR = 12.0
"""How far the mean colours may lie apart beyond brightness, of 255 levels."""
MIN_DEVIATION = 2.0
"""Photos with less contrast than this, of 255 levels, are blank: they all look like copies of one another."""
_NOISE = 5.0
"""Levels added to the contrast: a thumbnail of a nearly flat photo is mostly rounding."""
_BLOCK = 256
_PAIRS = 65536


def exact(looks: Looks) -> NDArray[np.int64]:
    """Number the photos by their bytes: equal numbers, equal files; int64 [n]."""
    _, number = np.unique(looks.rows["sha256"].view("V32").ravel(), return_inverse=True)
    return number.astype(np.int64)


def near(looks: Looks) -> NDArray[np.int64]:
    """Number the photos so that copies, exact or near, have equal numbers; int64 [n].

    A copy of a copy is in the same group. Memory grows with the number of photos, not with the number of pairs.
    """
    number = exact(looks)
    for pairs in _candidates(looks):
        apart = pairs[number[pairs[:, 0]] != number[pairs[:, 1]]]  # frames of one film are nearly all joined early
        if len(apart := apart[_alike(looks, apart)]):
            number = _joined(number, apart)
    return number


def groups(number: NDArray[np.int64]) -> list[list[int]]:
    """Positions that share a number, in order, where there are at least two."""
    order = np.argsort(number, kind="stable")
    starts = np.flatnonzero(np.diff(number[order])) + 1
    found = [part.tolist() for part in np.split(order, starts) if len(part) > 1]
    return sorted(found)


def residuals(looks: Looks, pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Root mean square of the difference of two thumbnails, brightness aside, against their contrast.

    Args:
        looks: of all photos.
        pairs: positions, [m, 2].

    Returns:
        [m], 0 for equal photos. Measured on `elpv`: 95 % of re-encoded and resized copies up to 0.03; two shots of one
        cell from 0.05 on.
    """
    thumbnails = looks.rows["thumbnail"][pairs].astype(np.float32)  # [m, 2, side, side]
    thumbnails -= thumbnails.mean((2, 3), keepdims=True)
    contrast = np.sqrt(thumbnails.std((2, 3)).prod(1))
    distance = np.sqrt(np.square(thumbnails[:, 0] - thumbnails[:, 1]).mean((1, 2)))
    result: NDArray[np.float32] = distance / (contrast + _NOISE)
    return result


def _candidates(looks: Looks) -> Iterator[NDArray[np.int64]]:
    """Pairs of positions whose hashes are close, [m, 2], at most some ten thousand at a time."""
    position = np.flatnonzero(looks.rows["deviation"] >= MIN_DEVIATION)
    hashes = looks.rows["hash"][position]
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        close = np.bitwise_count(block[:, None] ^ hashes[None, start:]) <= MAX_BITS
        first, second = np.nonzero(np.triu(close, 1))
        pairs = position[np.stack([first, second], 1) + start]
        yield from np.split(pairs, range(_PAIRS, len(pairs), _PAIRS))


def _alike(looks: Looks, pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    colours = looks.rows["colour"][pairs]  # [m, 2, 3]
    cast = colours - colours.mean(2, keepdims=True)
    apart = np.abs(cast[:, 0] - cast[:, 1]).max(1)
    result: NDArray[np.bool_] = (residuals(looks, pairs) <= MAX_RESIDUAL) & (apart <= MAX_COLOUR)
    return result


def _joined(number: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give all photos that pairs connect, directly or not, one number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(number.max()) + 1
    ends = number[pairs]
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(count, count))
    joined: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return joined[number].astype(np.int64)


def listed(looks: Looks, number: NDArray[np.int64]) -> tuple[CopyGroup, ...]:
    """Describe the groups of copies.

    Args:
        looks: of all photos.
        number: what `near` gave for them.
    """
    same = exact(looks)
    first = {int(same[index]): looks.examples.items[index].id for index in reversed(range(len(same)))}
    brings_splits = any(example.split for example in looks.examples)

    def member(index: int) -> Copy:
        example = looks.examples.items[index]
        split = given_split(example, brings_splits)
        return Copy(example.id, split, looks.examples.label_text(example), first[int(same[index])])

    return tuple(CopyGroup(tuple(member(index) for index in group)) for group in groups(number))


def representatives(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of one photo of each group, and of every photo that has no copy; int64, rising."""
    return np.sort(np.unique(number, return_index=True)[1])
