"""What a sample tells about backbones, and what cross-validation costs: `python -m benchmarks.choose_backbone`.

Everything is measured in one process on the same photos (elpv), weights (ImageNet) and cores:

- the sample of `recipes.choose_backbone` (its feature pass, LogME and probes) against the feature pass over all photos;
- k folds of `recipes.cross_validate` on stored features against the feature pass that made these;
- the order of the backbones by LogME on samples, against that by full probes: the mean over several splits of all
  photos, and cross-validation with the interval of each difference, which tells whether there is an order at all.

Converting a backbone for its pass is left out on both sides. Sides take turns; medians and ranges are printed.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgetl import comparison, cross_validation, data, features
from edgetl.config import command
from edgetl.metrics import primary
from recipes import choose_backbone, cross_validate, experiment
from recipes.choose_backbone import Config as Recipe

T = TypeVar("T")


@dataclass(frozen=True)
class Config:
    """Measure samples against all photos."""

    data: str = "elpv"
    """Photos."""
    backbones: str = "EfficientNetLite0,EfficientNetLite1,EfficientNetLite2"
    """Names joined by commas."""
    sample: int = 500
    """Photos of a sample."""
    folds: int = 5
    """Of cross-validation."""
    rounds: int = 3
    """How often each side of a comparison runs."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of splits and samples."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Measured:
    """One backbone."""

    backbone: str
    full_pass_s: list[float]
    sample_pass_s: list[float]
    ranking_s: list[float]
    """LogME and probes on the sample."""
    folds_s: list[float]
    """All folds on the stored features of all photos."""
    splits: list[float]
    """Primary figure of a probe on the test part of each seed's split of all photos."""
    together: float
    """The same of all photos, cross-validated."""
    logme: list[float]
    """On each seed's sample."""
    probe: list[float]
    """Primary figure of the probes on each seed's sample."""


@dataclass(frozen=True)
class Pair:
    """Two backbones, cross-validated on all photos."""

    first: str
    second: str
    drop: float
    low: float
    high: float
    """95 % interval; where 0 is inside, all photos together don't tell which is better."""
    samples_agree: int
    """Samples on which LogME puts them in the order that all photos do."""


@dataclass(frozen=True)
class Figures:
    """Raw seconds of every round, and figures as fractions."""

    photos: int
    sample: int
    seeds: int
    folds: int
    measured: list[Measured]
    pairs: list[Pair]


def main(config: Config) -> Figures:
    """Measure all backbones."""
    examples = cross_validate.whole(data.load(config.data))
    found, said = [], {}
    for name in config.backbones.split(","):
        each, outputs = _measured(config, name, examples)
        found.append(each)
        said[name] = outputs
        print(each, file=sys.stderr)
    pairs = []
    for first, second in itertools.combinations(found, 2):
        told = comparison.compare(examples.labels, said[first.backbone], said[second.backbone], examples.outputs)
        agree = sum((a > b) == (told.drop > 0) for a, b in zip(first.logme, second.logme, strict=True))
        pairs.append(Pair(first.backbone, second.backbone, told.drop, told.drop_low, told.drop_high, agree))
    figures = Figures(len(examples), config.sample, len(config.seeds), config.folds, found, pairs)
    if config.json:
        config.json.write_text(json.dumps(asdict(figures), indent=2))
    return figures


def _measured(config: Config, name: str, examples: data.Examples) -> tuple[Measured, np.ndarray]:
    settings = Recipe(config.data, Path("unused"), backbone=name, sample=config.sample, folds=config.folds)
    row, spec = experiment.row_and_spec(settings)
    backbone = experiment.build_backbone(settings, row, spec)
    forward = experiment.converted(settings, backbone, f"convert {name}")

    def passed(part: data.Examples) -> features.Features:
        with tempfile.TemporaryDirectory() as cache:
            return features.extract(part, spec, lambda: forward, key={}, cache=Path(cache))

    sample = data.stratified_subset(examples, config.sample, config.seeds[0])
    seconds: dict[str, list[float]] = {"full": [], "sample": [], "ranking": [], "folds": []}
    for _ in range(config.rounds):
        table = _timed(seconds["full"], partial(passed, examples))
        some = _timed(seconds["sample"], partial(passed, sample))
        _timed(seconds["ranking"], partial(choose_backbone.ranked, settings, row, some))
        parts = _timed(seconds["folds"], partial(_folds, settings, table))
    outputs, _ = cross_validation.joined(parts, examples)
    trials = [
        choose_backbone.ranked(
            replace(settings, seed=seed), row, _rows(table, data.stratified_subset(examples, config.sample, seed))
        ).candidate
        for seed in config.seeds
    ]
    measured = Measured(
        backbone=name,
        full_pass_s=seconds["full"],
        sample_pass_s=seconds["sample"],
        ranking_s=seconds["ranking"],
        folds_s=seconds["folds"],
        splits=[_probe(replace(settings, seed=seed, test_fraction=0.25), table) for seed in config.seeds],
        together=primary(examples.labels, outputs, examples.outputs),
        logme=[trial.logme for trial in trials],
        probe=[trial.probe.primary for trial in trials],
    )
    return measured, outputs


def _folds(settings: Recipe, table: features.Features) -> list[cross_validation.FoldOutputs]:
    folds = cross_validate.divided(settings, table.examples, settings.folds)
    return [cross_validate.probed(table, splits) for splits in folds]


def _probe(settings: Recipe, table: features.Features) -> float:
    part = cross_validate.probed(table, experiment.divide(settings, table.examples))
    return primary(table.examples.select(part.ids).labels, part.outputs, part.model.spec)


def _rows(table: features.Features, part: data.Examples) -> features.Features:
    hashes = {example.id: sha256 for example, sha256 in zip(table.examples, table.sha256, strict=True)}
    return features.Features(part, table.of(part), tuple(hashes[example.id] for example in part), ())


def _timed(seconds: list[float], side: Callable[[], T]) -> T:
    start = time.perf_counter()
    found = side()
    seconds.append(time.perf_counter() - start)
    return found


def show(figures: Figures) -> str:
    """Ratios, with medians and ranges, and the orders."""

    def ratio(of: Callable[[Measured, int], float]) -> str:
        rounds = range(len(figures.measured[0].full_pass_s))
        each = [
            sum(of(one, at) for one in figures.measured) / sum(one.full_pass_s[at] for one in figures.measured)
            for at in rounds
        ]
        return f"{statistics.median(each):.3f} ({min(each):.3f}-{max(each):.3f})"

    def order(values: Sequence[float]) -> str:
        ranked = sorted(zip(values, figures.measured, strict=True), key=lambda pair: -pair[0])
        return " > ".join(f"{one.backbone} {value:.4f}" for value, one in ranked)

    every = figures.measured
    lines = [
        f"{figures.photos} photos, samples of {figures.sample}, {data.default_workers()} cores; median (range) over "
        f"{len(every[0].full_pass_s)} rounds",
        *(
            f"{one.backbone:17} full pass {statistics.median(one.full_pass_s):5.1f} s, sample "
            f"{statistics.median(one.sample_pass_s):4.1f} s, its LogME and probes "
            f"{statistics.median(one.ranking_s):4.2f} s; {figures.folds} folds of all "
            f"{statistics.median(one.folds_s):4.2f} s"
            for one in every
        ),
        f"ranking by the sample : full pass     {ratio(lambda it, at: it.sample_pass_s[at] + it.ranking_s[at])}",
        f"pass and {figures.folds} folds : full pass         "
        f"{ratio(lambda it, at: it.full_pass_s[at] + it.folds_s[at])}",
        f"full probes, mean of {figures.seeds} splits  {order([statistics.fmean(one.splits) for one in every])}",
        f"full probes, {figures.folds} folds           {order([one.together for one in every])}",
        *(
            f"  {pair.first} - {pair.second}: {100 * pair.drop:+.2f} points ({100 * pair.low:+.2f} to "
            f"{100 * pair.high:+.2f}); LogME agrees on {pair.samples_agree} of {figures.seeds} samples"
            for pair in figures.pairs
        ),
        *(f"sample {at}, LogME              {order([one.logme[at] for one in every])}" for at in range(figures.seeds)),
        f"samples' probes, mean          {order([statistics.fmean(one.probe) for one in every])}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.choose_backbone", show=show))
