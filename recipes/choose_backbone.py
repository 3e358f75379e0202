"""Which backbone suits these photos and this device, found out on a sample before anything is trained.

`python -m recipes.choose_backbone --data photos/ --out runs/backbones`

Each backbone sees a sample of the photos once. LogME and a linear probe say how much its features know of them, its
int8 form is made and timed on this machine, and the fastest that is not measurably worse than the best is recommended.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Fixed, Suppress

from edgetl import comparison, cross_validation, data, domain, features, logme, rundir
from edgetl.backbones import registry
from edgetl.backbones.backbone import Backbone
from edgetl.config import checked, command, to_json
from edgetl.console import log, progress, quiet_tensorflow, table_lines
from edgetl.errors import ConfigError, DatasetError, WeightsError
from edgetl.inputs import InputSpec
from edgetl.metrics import said_labels, score
from edgetl.outputs import OutputSpec
from edgetl.rundir import RunDir, read_json
from edgetl.scores import PRIMARY, Scores
from recipes import cross_validate, experiment
from recipes.experiment import Experiment

if TYPE_CHECKING:
    import keras

RECIPE = "choose_backbone"
PROG = f"python -m recipes.{RECIPE}"
RESULT = "backbones.json"
PICTURE = "backbones.png"
GROUPS = ("edge", "all")
EDGE_PARAMETERS = 6_000_000
"""`edge` takes backbones of at most so many."""
CALIBRATION_PHOTOS = 32
"""They set ranges; size and time do not depend on them."""
DOMAIN_PHOTOS = 48
WARMUP = 20


@dataclass(frozen=True)
class Config(Experiment):
    """Rank backbones on a sample of the photos, next to their size and speed as int8 on this machine."""

    backbone: Annotated[str, Fixed, Suppress] = ""
    width: Annotated[float, Fixed, Suppress] = 1.0
    test_fraction: Annotated[float, Fixed, Suppress] = 0.0
    backbones: str = "edge"
    """Names joined by commas; `edge`: those of at most 6 million parameters whose weights are on this machine; `all`:
    every one, weights being downloaded where need be."""
    sample: int = 500
    """Photos that each backbone sees, stratified; all if there are no more than that."""
    folds: int = 5
    """Parts of the sample on which the linear probe is tested in turn."""
    runs: int = field(default=100, metadata={"affects_result": False})
    """Invocations of each int8 model that are timed."""


@dataclass(frozen=True)
class Candidate:
    """What was found out about one backbone."""

    backbone: str
    image_size: int
    """Side of its input, pixels."""
    parameters: int
    imagenet_top1: float
    """As published, a fraction."""
    logme: float
    """See `edgetl.logme`; larger is better, on these photos."""
    probe: Scores
    """Linear probe, each photo of the sample as the one says that has not seen it."""
    outputs: OutputSpec
    """What the probes say."""
    distance: float | None
    """From its pretraining photos, see `edgetl.domain`; None where nothing is known of these."""
    size_bytes: int | None
    """As int8; None where it has no such form."""
    refused: str
    """Why it has none."""
    latency_ms: float | None = None
    """Median of an invocation as int8, one thread, on this machine."""
    noise: str = ""
    """Why the latency is not to be trusted; empty where it is."""


@dataclass(frozen=True)
class Trial:
    """A backbone, and what its probes say of each photo."""

    candidate: Candidate
    ids: tuple[str, ...]
    said: NDArray[np.float32]
    """[n, k], in the order of `ids`."""


@dataclass(frozen=True)
class Choice:
    """What `backbones.json` holds."""

    data: str
    photos: int
    sample: int
    candidates: tuple[Candidate, ...]
    """From the highest LogME down."""
    skipped: dict[str, str]
    """Backbones of a group whose weights can't be had, and why."""
    recommended: str
    reason: str
    device: str
    """On which latencies were measured."""
    onward: str
    """The command that goes on with what is recommended, on the same photos."""
    path: str
    """Where this is written."""
    schema_version: int = 1


def main(config: Config) -> Choice:
    """Try each backbone on the sample; those that an interrupted run finished are kept.

    Returns:
        What OUT/backbones.json holds.

    Raises:
        EdgetlError: see `edgetl.errors`; what was measured stays.
    """
    config = checked(config)
    rows = named(config)
    examples = cross_validate.pooled(config)
    sample = sampled(config, examples)
    with rundir.writing(config.out, RECIPE, config) as run:
        rows, skipped = available(config, rows)
        found = [tried(config, run, row, sample, f"{number} of {len(rows)}") for number, row in enumerate(rows, 1)]
        candidates, device = timed(config, run, [each.candidate for each in found])
        recommended, reason = recommend(candidates, found, sample)
        choice = Choice(
            data=config.data,
            photos=len(examples),
            sample=len(sample),
            candidates=tuple(sorted(candidates, key=lambda each: -each.logme)),
            skipped=skipped,
            recommended=recommended,
            reason=reason,
            device=device,
            onward=onward(config, recommended, run),
            path=str(run.path),
        )
        draw(run, choice)
        run.write(RESULT, to_json(choice))
    return choice


def named(config: Config) -> list[Backbone]:
    """The rows of the registry that the settings name.

    Raises:
        ConfigError: a number is out of range, or no name.
        BackboneError: no such backbone.
    """
    experiment.check_common(config)
    for name, least in (("sample", 10), ("runs", 1)):
        if getattr(config, name) < least:
            raise ConfigError(f"--{name} {getattr(config, name)}: must be at least {least}")
    if config.backbones == "all":
        return list(registry.BACKBONES.values())
    if config.backbones == "edge":
        return [row for row in registry.BACKBONES.values() if row.parameters <= EDGE_PARAMETERS]
    names = [name.strip() for name in config.backbones.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--backbones {config.backbones!r}: no name. Give some, joined by commas, or edge, or all")
    return list({row.name: row for row in map(registry.get, names)}.values())


def sampled(config: Config, examples: data.Examples) -> data.Examples:
    """The photos that each backbone sees.

    Raises:
        ConfigError: too few to divide them.
    """
    count = min(config.sample, len(examples))
    try:
        sample = data.stratified_subset(examples, count, config.seed)
        cross_validate.divided(config, sample, config.folds)
        experiment.divide(config, sample)
    except DatasetError as error:
        if count == len(examples):
            raise
        raise ConfigError(f"--sample {config.sample}: too small. {error}") from error
    return sample


def available(config: Config, rows: list[Backbone]) -> tuple[list[Backbone], dict[str, str]]:
    """Leave out of a group the backbones whose weights can't be had.

    Returns:
        Those that can be tried; the others' names, and why not.

    Raises:
        WeightsError: those of one that was named, or of all.
    """
    quiet_tensorflow()
    from edgetl.backbones.weights import at_hand, locate

    if config.backbones not in GROUPS:
        return rows, {}
    there, skipped = [], {}
    for row in rows:
        _, spec = experiment.row_and_spec(dataclasses.replace(config, backbone=row.name))
        try:
            if config.backbones == "edge" and config.weights == "imagenet" and not at_hand(row, spec):
                raise WeightsError(f"{row.name}: its weights are not on this machine. Name it to have them fetched")
            locate(row, spec, config.weights)
            there.append(row)
        except WeightsError as error:
            skipped[row.name] = str(error)
    if not there:
        raise WeightsError(f"--backbones {config.backbones}: no weights can be had. {next(iter(skipped.values()))}")
    return there, skipped


def tried(config: Config, run: RunDir, row: Backbone, sample: data.Examples, place: str) -> Trial:
    """Measure one backbone, latency aside, or read what was measured."""
    if kept := reread(run, row, sample):
        log.info("%s (%s): kept", row.name, place)
        return kept
    log.info("%s (%s)", row.name, place)
    own = dataclasses.replace(config, backbone=row.name)
    _, spec = experiment.row_and_spec(own)
    backbone = experiment.build_backbone(own, row, spec)
    table = experiment.extract(own, row, spec, sample, backbone)
    trial = ranked(own, row, table)
    photos = decoded(table.examples, spec, DOMAIN_PHOTOS, config.seed)
    with progress("distance from pretraining"):
        far = domain.distance(backbone, photos) if config.weights == "imagenet" else None
    tflite, refused = integer_form(own, backbone, table, photos[:CALIBRATION_PHOTOS])
    found = dataclasses.replace(trial.candidate, distance=far, size_bytes=len(tflite) or None, refused=refused)
    run.write(f"{row.name}.tflite", tflite)
    said = cross_validate.npz(
        sample=sample_key(sample), ids=trial.ids, said=trial.said, tflite=hashlib.sha256(tflite).hexdigest()
    )
    run.write(f"{row.name}.npz", said)
    run.write(f"{row.name}.json", rundir.sealed(found))
    return dataclasses.replace(trial, candidate=found)


def reread(run: RunDir, row: Backbone, sample: data.Examples) -> Trial | None:
    """What an earlier process measured on the same photos, if it finished."""
    about, said, tflite = (run.path / f"{row.name}{suffix}" for suffix in (".json", ".npz", ".tflite"))
    if not (about.is_file() and said.is_file() and tflite.is_file()):
        return None
    try:
        with np.load(said) as kept:
            if str(kept["sample"]) != sample_key(sample):
                return None
            if str(kept["tflite"]) != rundir.sha256_of(tflite):
                raise ValueError(f"{tflite}: not the file that was measured")
            return Trial(read_json(Candidate, about), tuple(map(str, kept["ids"])), kept["said"])
    except Exception:  # a flipped bit can ask zipfile for anything
        log.warning("%s is damaged and will be made again", said)
        return None


def sample_key(sample: data.Examples) -> str:
    """Tells photos, labels, groups and weights of a sample from others."""
    labels = "".join("\0".join(data.written(sample, example)) + "\n" for example in sample)
    places = "".join(features.photos_key(sample, start) for start in range(0, len(sample), features.SHARD_ROWS))
    return hashlib.sha256((labels + places).encode(errors="surrogateescape")).hexdigest()


def ranked(config: Config, row: Backbone, table: features.Features) -> Trial:
    """Say how much the features know of the labels: LogME, and linear probes tested on what they have not seen."""
    examples = table.examples
    evidence = logme.log_evidence(table.rows, logme.targets_of(examples.labels, examples.outputs))
    folds = cross_validate.divided(config, cross_validate.whole(examples), config.folds)
    parts = [cross_validate.probed(table, splits) for splits in folds]
    outputs, spec = cross_validation.joined(parts, examples)
    probe = score(examples.labels, outputs, spec)
    size = config.image_size or row.default_size
    found = Candidate(row.name, size, row.parameters, row.top1, evidence, probe, spec, None, None, "")
    return Trial(found, tuple(example.id for example in examples), outputs)


def decoded(examples: data.Examples, spec: InputSpec, count: int, seed: int) -> list[NDArray[np.uint8]]:
    """Pixels of some of the photos, stratified."""
    some = data.stratified_subset(examples, max(count, len(examples.output_names)), seed)
    return [image for batch in data.decoded(some, spec) for image in batch.pixels]


def integer_form(
    config: Config, backbone: "keras.Model", table: features.Features, photos: Sequence[NDArray[np.uint8]]
) -> tuple[bytes, str]:
    """The backbone with a linear probe of the sample as int8 .tflite; empty, and why, where it has no such form."""
    from edgetl import heads
    from export.forms import int8_form

    head, _ = experiment.fit_linear_head(table, experiment.divide(config, table.examples))
    return int8_form(heads.attach(backbone, heads.finish(head)), photos, rounding=False)


def timed(config: Config, run: RunDir, candidates: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    """Time all int8 forms in turns.

    Returns:
        The candidates with their latencies, and the device.
    """
    from export import benchmark

    paths = {each.backbone: run.path / f"{each.backbone}.tflite" for each in candidates if each.size_bytes}
    if not paths:
        return list(candidates), ""
    reports = benchmark.measure(tuple(paths.values()), benchmark.Config(run.path, runs=config.runs, warmup=WARMUP))
    by_name = dict(zip(paths, reports, strict=True))
    for name, report in by_name.items():
        run.write(f"{name}.latency.json", to_json(report))
    measured = [
        dataclasses.replace(each, latency_ms=by_name[each.backbone].median_ms, noise=by_name[each.backbone].noise)
        if each.backbone in by_name
        else each
        for each in candidates
    ]
    return measured, str(reports[0].circumstances.device)


def recommend(candidates: Sequence[Candidate], trials: Sequence[Trial], sample: data.Examples) -> tuple[str, str]:
    """The fastest of those that the sample does not show to be worse than the best.

    Args:
        candidates: with their latencies.
        trials: of the same backbones.
        sample: the photos.

    Returns:
        Its name, and the reason in one sentence.
    """
    able = [each for each in candidates if each.latency_ms is not None]
    figure = PRIMARY[sample.task]
    if not able:
        best = max(candidates, key=lambda each: each.logme)
        return best.backbone, f"{best.backbone} has the highest LogME; none has an int8 form to be timed"
    best = max(able, key=lambda each: (each.probe.primary, each.logme))
    said = {each.candidate.backbone: decided(each) for each in trials}
    outputs = dataclasses.replace(best.outputs, thresholds=(0.5,) * len(best.outputs.thresholds))
    labels = sample.select(trials[0].ids).labels
    against = {
        each.backbone: comparison.compare(labels, said[best.backbone], said[each.backbone], outputs) for each in able
    }
    level = [each for each in able if each is best or against[each.backbone].drop_low <= 0]
    chosen = min(level, key=lambda each: each.latency_ms or 0.0)
    told = f"{chosen.backbone}: int8 {chosen.latency_ms:.2f} ms, {figure} {100 * chosen.probe.primary:.1f} %"
    if chosen is best:
        faster = "and the fastest" if chosen.latency_ms == min(each.latency_ms or 0.0 for each in able) else ""
        return chosen.backbone, f"{told}, the best probe on {len(sample)} photos {faster}".rstrip()
    drop = against[chosen.backbone]
    return chosen.backbone, (
        f"{told}, the fastest of those that {len(sample)} photos do not show to be worse than the best, "
        f"{best.backbone} at {best.latency_ms:.2f} ms ({100 * drop.drop:.1f} points more, 95 % interval "
        f"{100 * drop.drop_low:.1f} to {100 * drop.drop_high:.1f})"
    )


def decided(trial: Trial) -> NDArray[np.float32]:
    """What probes say, [n, k]; of labels 0 or 1 by their own thresholds: those of other probes mean nothing."""
    outputs = trial.candidate.outputs
    return said_labels(trial.said, outputs).astype(np.float32) if outputs.task == "multi_label" else trial.said


def onward(config: Config, backbone: str, run: RunDir) -> str:
    """The cross-validation of a backbone, with all that was said of the photos."""
    from export.reporting.origins import recipe_words

    usual = Experiment(config.data, config.out)
    said: dict[str, object] = {"data": config.data, "backbone": backbone, "out": f"{run.path}-folds"}
    own = {"test_fraction", *said}
    for name in (f.name for f in fields(Experiment) if f.name not in own):
        if getattr(config, name) != getattr(usual, name):
            said[name] = getattr(config, name)
    return " ".join(recipe_words(said, cross_validate.RECIPE))


def draw(run: RunDir, choice: Choice) -> None:
    """Write the picture, if there is anything to draw."""
    from edgetl.plots import Tradeoff, tradeoffs

    points = [
        Tradeoff(each.backbone, each.latency_ms, each.size_bytes, each.probe)
        for each in choice.candidates
        if each.latency_ms is not None and each.size_bytes is not None
    ]
    if points:
        title = f"{Path(choice.data).name}: linear probe on {choice.sample} of {choice.photos} photos"
        run.write(PICTURE, tradeoffs(points, choice.recommended, title))


def show(choice: Choice) -> str:
    """A table from the highest LogME down, what it means, and what to do next."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    primary = PRIMARY[choice.candidates[0].probe.task]
    for title in (
        "backbone",
        "LogME",
        f"probe {primary} %",
        "95 %",
        "int8 MB",
        "int8 ms",
        "px",
        "ImageNet %",
        "distance",
    ):
        table.add_column(title, justify="left" if title == "backbone" else "right", no_wrap=True)
    table.add_column("remark")
    for each in choice.candidates:
        low, high = 100 * each.probe.primary_low, 100 * each.probe.primary_high
        table.add_row(
            each.backbone,
            f"{each.logme:.4f}",
            f"{100 * each.probe.primary:.1f}",
            f"{low:.1f}-{high:.1f}",
            "-" if each.size_bytes is None else f"{each.size_bytes / 1e6:.2f}",
            "-" if each.latency_ms is None else f"{each.latency_ms:.2f}",
            str(each.image_size),
            f"{100 * each.imagenet_top1:.1f}",
            "-" if each.distance is None else f"{each.distance:.2f}",
            "noisy" if each.noise else each.refused,
        )
    lines = [*table_lines(table, 140), f"{choice.sample} of {choice.photos} photos; latencies: {choice.device}"]
    if noisy := [each.noise for each in choice.candidates if each.noise]:
        lines.append(f"noisy: {noisy[0]}; the same command on a quiet machine times anew")
    if distances := [each.distance for each in choice.candidates if each.distance is not None]:
        lines.append(f"these photos are {domain.in_words(float(np.median(distances)))}")
    if choice.skipped:
        lines.append(f"left out, as their weights can't be had here ({RESULT} tells why): {', '.join(choice.skipped)}")
    lines.append(f"recommended: {choice.reason}")
    lines.append(f"next: {choice.onward}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
