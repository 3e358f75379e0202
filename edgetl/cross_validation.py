"""k-fold cross-validation: each photo is tested once, by a model that has never seen it.

On a few hundred photos the figure of one test split moves by points with the seed. Here all photos are test photos in
turn, and the folds tell how far the figure moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from edgetl.config import from_json, to_json
from edgetl.data import Examples, grouping
from edgetl.errors import ConfigError, DatasetError
from edgetl.outputs import OutputSpec
from edgetl.scores import Scores


@dataclass(frozen=True)
class FoldModel:
    """How the model of one fold came about."""

    trained: int
    """Examples that it learned from."""
    validated: int
    """Examples that choices were made on, all of the other folds."""
    chosen: str
    """What was chosen on them, in words."""
    spec: OutputSpec
    """What its outputs stand for, with its own thresholds or deviations."""


@dataclass(frozen=True)
class Fold(FoldModel):
    """The same with its figures."""

    number: int
    """From 1."""
    test: Scores
    """On its own part of all examples, of which nothing was learned and nothing chosen."""


@dataclass(frozen=True)
class FoldOutputs:
    """What the model of one fold says of the examples that it has not seen."""

    model: FoldModel
    ids: tuple[str, ...]
    outputs: NDArray[np.float32]
    """[n, k]."""
    splits_sha256: str
    """Of what the model was made of and tested on, as `edgetl.data.write_csv` has it."""

    def to_bytes(self) -> bytes:
        """Content of an .npz file."""
        buffer = BytesIO()
        model, splits = np.array(to_json(self.model)), np.array(self.splits_sha256)
        np.savez(buffer, model=model, ids=np.array(self.ids), outputs=self.outputs, splits_sha256=splits)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "FoldOutputs":
        """Read what `to_bytes` gave.

        Raises:
            ValueError: it is damaged.
        """
        try:
            with np.load(BytesIO(content), allow_pickle=False) as stored:
                model = from_json(FoldModel, str(stored["model"]))
                ids = tuple(str(id_) for id_ in stored["ids"])
                return cls(model, ids, stored["outputs"], str(stored["splits_sha256"]))
        except Exception as error:  # a flipped bit can ask zipfile for anything
            raise ValueError(str(error)) from error


@dataclass(frozen=True)
class Spread:
    """The primary figure over the folds."""

    mean: float
    deviation: float
    """Standard deviation over the folds: how far a single split of this size moves."""
    low: float
    high: float
    """95 % interval of the mean; see `spread`."""


def assign(examples: Examples, folds: int, seed: int) -> NDArray[np.int64]:
    """Choose the fold in which each example is tested: stratified, no group cut, no fold without a class or label.

    Args:
        examples: all; splits that the data set brings are ignored.
        folds: how many, at least 2; as large as each other within what groups allow.
        seed: another seed, another division.

    Returns:
        Number of its fold for each example, 0..folds-1, [n].

    Raises:
        ConfigError: fewer than 2 folds.
        DatasetError: more folds than examples or groups there are, or there are of a class or label.
    """
    units = grouping.units_of(examples)
    needed = grouping.required(examples)
    _refuse(examples, units, needed, folds)
    parts = grouping.spread(units, [1 / folds] * folds, needed, seed)
    fold_of = {item.id: number for number, part in enumerate(parts) for unit in part for item in unit.items}
    return np.array([fold_of[item.id] for item in examples], np.int64)


def _refuse(examples: Examples, units: Sequence[grouping.Unit], needed: Sequence[int], folds: int) -> None:
    if folds < 2:
        raise ConfigError(f"--folds {folds}: need at least 2, such as 5")
    what = "groups" if any(item.group for item in examples) else "examples"
    kind_name = "label" if examples.task == "multi_label" else "class"
    for kind in sorted(needed):
        holders = sum(kind in unit.kinds for unit in units)
        if holders < folds:
            of = f" of {kind_name} {examples.output_names[kind]}" if kind != grouping.EXAMPLE else ""
            raise DatasetError(
                f"{examples.source}: {holders} {what}{of}, fewer than --folds {folds}. Lower it or add some"
            )


def joined(parts: Sequence[FoldOutputs], examples: Examples) -> tuple[NDArray[np.float32], OutputSpec]:
    """Put what the folds say together, in the order of `examples`, each of which occurs once.

    Returns:
        Outputs [n, k], and what they stand for as a whole: thresholds and deviations are means over the folds.
    """
    row = {example.id: index for index, example in enumerate(examples)}
    outputs = np.empty((len(examples), parts[0].outputs.shape[1]), np.float32)
    for part in parts:
        outputs[[row[id_] for id_ in part.ids]] = part.outputs
    specs = [part.model.spec for part in parts]

    def mean(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(float(each) for each in np.mean(values, axis=0))

    thresholds, deviations = mean([s.thresholds for s in specs]), mean([s.deviations for s in specs])
    return outputs, OutputSpec(specs[0].task, specs[0].names, thresholds, deviations)


def spread(figures: Sequence[float], tested: float, trained: float) -> Spread:
    """Describe the primary figure over the folds.

    The folds share most of their training examples, so their deviation over the root of their number is far too small
    an error; here the variance is multiplied by 1/k + tested/trained instead (Nadeau and Bengio, "Inference for the
    generalization error", Machine Learning 52, 2003), and Student's t has k - 1 degrees of freedom.

    Args:
        figures: of each fold, at least 2, at most 1 each.
        tested: examples per fold that its figure is measured on.
        trained: examples per fold that its model learned from.
    """
    from scipy.stats import t

    values = np.asarray(figures, np.float64)
    mean, deviation = float(values.mean()), float(values.std(ddof=1))
    half = float(t.ppf(0.975, len(values) - 1)) * deviation * (1 / len(values) + tested / trained) ** 0.5
    return Spread(mean, deviation, mean - half, min(mean + half, 1.0))
