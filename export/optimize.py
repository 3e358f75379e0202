"""The cheapest artifact within a budget of accuracy: `python -m export.optimize RUN --max-accuracy-drop 0.005`.

From cheap to dear: int8 as it is, int8 with other ranges, int8 weights alone, int8 with as few layers in float as
needed, quantization-aware training, and last float16. The first that fits is written. Candidates are judged on the
validation split; the one that was chosen is measured once on the test split.

On a few hundred photos a measured drop is half luck, and whoever tries ten candidates takes the luckiest. So a
candidate must keep the budget twice: with the drop that was measured, and with the one that is expected of the photos
on which it differs from Keras (`edgetl.comparison.Comparison.expected_drop`; labels have no part in it) plus one
standard error, after the rule of Breiman et al. 1984 for choosing among models.
"""

import hashlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from tyro.conf import Positional

from edgetl.comparison import Comparison, compare
from edgetl.config import checked, command, to_json
from edgetl.console import log, table_lines
from edgetl.errors import ArtifactError, ConfigError, DatasetError
from edgetl.features import Forward, forward_of
from edgetl.metrics import primary, score
from edgetl.outputs import Task
from edgetl.rundir import RunDir, held, installed_versions, write_atomic
from edgetl.scores import PRIMARY, Scores, summary
from export import schemes
from export.artifacts import device_errors
from export.choices import Choices, takes_ranges
from export.conversion import Conversion, Making, opened
from export.predictions import EvaluationSet
from export.schemes import Scheme

if TYPE_CHECKING:
    from export.quantize import Quantized

PROG = "python -m export.optimize"
OPTIMIZATION = "optimization.json"
NOTHING_FITS = 3
"""Exit status."""
FEW = 50
"""Calibration photos of the candidate that sees fewer outliers."""
WARMUP, RUNS = 10, 50
"""Invocations that a latency is taken from."""
LATENCY_NOISE = 0.05
"""Share by which latencies may differ and still count as equal."""
ERROR_IMAGES = 32
"""Calibration photos that layers are ranked on."""
ACCURACY, SIZE, LATENCY = "accuracy", "size", "latency"
Target = Literal["cpu", "npu", "mcu"]


@dataclass(frozen=True)
class Config(Making):
    """Find the cheapest artifact that loses no more accuracy than allowed, and write it."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    max_accuracy_drop: float = 0.005
    """What may be lost of the task's figure against the Keras model, 0..1: 0.005 is half a point of top-1 (labels: F1,
    values: R2). It holds for the drop measured on the validation split and for the one that is expected, with its
    standard error."""
    max_size_kb: float | None = None
    """Largest file, 1000 bytes."""
    max_latency_ms: float | None = None
    """Longest median of one invocation on this machine, one thread, XNNPACK, milliseconds."""
    target: Target = "cpu"
    """`cpu` takes any artifact; `npu` and `mcu` only those without a float operator."""


@dataclass(frozen=True)
class Candidate:
    """One artifact that was tried."""

    scheme: str
    settings: dict[str, str]
    """What was chosen within the scheme."""
    command: str
    """What makes this artifact again."""
    sha256: str = ""
    """Of the file, as it was measured."""
    refused: str = ""
    """Why there is no such artifact; then nothing below was measured."""
    size_bytes: int = 0
    latency_ms: float = 0.0
    """Median of one invocation on this machine."""
    primary: float = 0.0
    """Figure of the task (`edgetl.scores.PRIMARY`) on validation photos, fraction."""
    against_keras: Comparison | None = None
    """On validation photos."""
    misses: tuple[str, ...] = ()
    """Limits that it does not keep; none means that it fits."""
    reference: bool = False
    """Whether it stands here only to compare with."""

    @property
    def fits(self) -> bool:
        """Whether it may be chosen."""
        return not (self.refused or self.misses or self.reference)


@dataclass(frozen=True)
class Optimization:
    """What `optimization.json` holds: everything that was tried, and what came of it."""

    run: str
    run_sha256: str
    data_sha256: str
    max_accuracy_drop: float
    max_size_kb: float | None
    max_latency_ms: float | None
    target: str
    task: Task
    keras_primary: float
    """Figure of the task on validation photos, fraction."""
    candidates: tuple[Candidate, ...]
    """In the order in which they were tried; float32 first, to compare with."""
    chosen: int | None
    """Position of the candidate that was written; None where none fits."""
    best: int
    """Position of the candidate that comes nearest: the chosen one, or the one with the smallest drop."""
    test: Scores | None
    """The chosen artifact on the test split."""
    test_against_keras: Comparison | None
    device: str
    """What latencies were measured on."""
    versions: dict[str, str] = field(default_factory=installed_versions)
    schema_version: int = 1


def main(config: Config) -> Optimization:
    """Search, write the artifact that was found, and RUN/export/optimization.json.

    Raises:
        ConfigError: a limit out of range.
        RunError: the run is missing, unfinished or damaged, or another process is writing it.
        DatasetError: no validation split to decide on, or its photos are gone.
        ArtifactError: no candidate has a form that the target takes.
    """
    config = checked(config)
    check(config)
    with held(opened(config.run, config)) as run, device_errors():
        search = Search(run, config)
        search.climb()
        found = search.result()
        if found.chosen is not None:
            search.write(found.chosen)
        run.export_path.mkdir(exist_ok=True)
        write_atomic(run.export_path / OPTIMIZATION, to_json(found))
    return found


def check(config: Config) -> None:
    """Refuse limits that nothing can keep.

    Raises:
        ConfigError: names the option.
    """
    if not 0 <= config.max_accuracy_drop < 1:
        raise ConfigError(
            f"--max-accuracy-drop {config.max_accuracy_drop}: a share of at least 0 and less than 1 is needed; "
            "0.005 is half a point"
        )
    for name, limit in (("max-size-kb", config.max_size_kb), ("max-latency-ms", config.max_latency_ms)):
        if limit is not None and not 0 < limit < np.inf:
            raise ConfigError(f"--{name} {limit}: must be positive")


@dataclass(frozen=True)
class Option:
    """How a candidate is made."""

    scheme: Scheme
    ranges: str = "min-max"
    float_layers: tuple[str, ...] = ()
    images: int = 0
    """Calibration photos; 0 means as many as asked for."""


class Search:
    """The ladder: makes candidates, measures them, and stops at the first that fits."""

    def __init__(self, run: RunDir, config: Config) -> None:
        """Read what all candidates share.

        Raises:
            DatasetError: there is no validation split, or no test split.
        """
        self.run, self.config = run, config
        splits = run.splits(config.data)
        if not len(splits.validation):
            raise DatasetError(
                f"{run.path}: no validation split to decide on, and the test split is for the final figure. "
                "Train with --validation-fraction above 0"
            )
        if not len(splits.test):
            raise DatasetError(
                f"{run.path}: no photos were held out for testing (--test-fraction 0) to measure the result on. "
                "Optimize a run that has some, and convert this one likewise"
            )
        self.tried: list[Candidate] = []
        self.options: list[Option] = []
        self._conversions = {0: Conversion(run, config)}
        self._validation = EvaluationSet(run, splits.validation, forward=self._keras)
        self._test = splits.test
        self._made: dict[int, Quantized] = {}

    def climb(self) -> None:
        """Go up the ladder of the target until a candidate fits."""
        self.attempt(Option(schemes.get("float32")), reference=True)
        for rung in LADDERS[self.config.target]:
            rung(self)
            if any(candidate.fits for candidate in self.tried):
                return

    def attempt(self, option: Option, *, reference: bool = False) -> Candidate:
        """Make one candidate, measure it on the validation split and on this machine, and say how it did."""
        base = Candidate(option.scheme.name, self._settings(option), self._command(option), reference=reference)
        try:
            made = self._make(option)
        except (ArtifactError, ConfigError) as error:  # the latter: a training whose loss is no number
            candidate = replace(base, refused=str(error))
        else:
            candidate = self._measured(base, option, made)
            if candidate.fits:
                self._made[len(self.tried)] = made
        self.tried.append(candidate)
        self.options.append(option)
        log.info("%s", told(candidate))
        return candidate

    def conversion(self, option: Option) -> Conversion:
        """What makes an option: the same model, other calibration photos."""
        if option.images not in self._conversions:
            other = Conversion(self.run, replace(self.config, calibration_images=option.images))
            other.model = self._conversions[0].model
            self._conversions[option.images] = other
        return self._conversions[option.images]

    def harmful(self, base: Option) -> tuple[str, ...]:
        """Keras layers, from the most to the least worth leaving in float."""
        from export.layer_errors import layer_errors, most_harmful

        conversion = self.conversion(base)
        photos = conversion.photos[:: -(-len(conversion.photos) // ERROR_IMAGES)]
        return most_harmful(layer_errors(conversion.quantizer(base.scheme), None, photos, base.ranges))

    def best(self) -> int:
        """Position of the candidate that fits with the fewest float layers, or else of the one nearest to it."""
        where = [i for i, each in enumerate(self.tried) if not (each.refused or each.reference)]
        if not where:
            raise ArtifactError(
                f"{self.config.target}: no form of this model fits the target. "
                + "; ".join(dict.fromkeys(each.refused for each in self.tried if each.refused))
            )
        if fitting := [i for i in where if self.tried[i].fits]:
            return min(fitting, key=lambda i: len(self.options[i].float_layers))
        return min(where, key=lambda i: (not_accuracy(self.tried[i]), drop_of(self.tried[i])))

    def result(self) -> Optimization:
        """Sum up, with the chosen candidate measured on the test split."""
        best = self.best()
        before = next(each.primary + each.against_keras.drop for each in self.tried if each.against_keras)
        scores = compared = None
        if self.tried[best].fits:
            option = self.options[best]
            tflite = self.conversion(option).described(option.scheme, self._made[best])
            photos = EvaluationSet(self.run, self._test, keep_bytes=0, forward=self._keras)
            said = photos.predictions([tflite], label="test split")
            scores = score(said.labels, said.outputs[0], self.run.outputs)
            compared = compare(said.labels, said.keras, said.outputs[0], self.run.outputs)
        return Optimization(
            run=str(self.run.path),
            run_sha256=self.run.model_sha256,
            data_sha256=self.run.manifest.data_sha256,
            max_accuracy_drop=self.config.max_accuracy_drop,
            max_size_kb=self.config.max_size_kb,
            max_latency_ms=self.config.max_latency_ms,
            target=self.config.target,
            task=self.run.outputs.task,
            keras_primary=before,
            candidates=tuple(self.tried),
            chosen=best if scores else None,
            best=best,
            test=scores,
            test_against_keras=compared,
            device=_device(),
        )

    def write(self, index: int) -> None:
        """Write the artifact of a candidate that fits."""
        option = self.options[index]
        self.conversion(option).write(option.scheme, self._made[index], Choices(option.ranges, option.float_layers))

    def _keras(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What the Keras model says; the one that artifacts are made of, which is loaded when first needed."""
        return self._forward(pixels)

    @cached_property
    def _forward(self) -> Forward:
        return forward_of(self._conversions[0].model)

    def _make(self, option: Option) -> "Quantized":
        return self.conversion(option).make(option.scheme, Choices(option.ranges, option.float_layers))

    def _measured(self, base: Candidate, option: Option, made: "Quantized") -> Candidate:
        from export.device.interpreter import Model
        from export.device.timing import time_invocations

        tflite = self.conversion(option).described(option.scheme, made)  # the very file that would ship
        said = self._validation.predictions([tflite], label=base.scheme)
        timing = time_invocations(Model(tflite), warmup=WARMUP, runs=RUNS)
        base = replace(base, sha256=hashlib.sha256(tflite).hexdigest())
        return self.judged(
            base,
            compare(said.labels, said.keras, said.outputs[0], self.run.outputs),
            figure=primary(said.labels, said.outputs[0], self.run.outputs),
            size_bytes=len(tflite),
            latency_ms=float(np.median(timing.runs_ms)),
        )

    def judged(
        self, base: Candidate, found: Comparison, *, figure: float, size_bytes: int, latency_ms: float
    ) -> Candidate:
        """Put figures and the limits that they miss into a candidate."""
        config = self.config
        kept = {
            ACCURACY: worst_drop(found) <= config.max_accuracy_drop,
            SIZE: config.max_size_kb is None or size_bytes <= 1000 * config.max_size_kb,
            LATENCY: config.max_latency_ms is None or latency_ms <= config.max_latency_ms,
        }
        if base.scheme == "dynamic_int8":  # where its kernels are missing, it is several times as slow as the others
            slowest = max(each.latency_ms for each in self.tried if each.scheme in ("float32", "int8"))
            kept[LATENCY] &= latency_ms <= (1 + LATENCY_NOISE) * slowest
        misses = tuple(name for name, fine in kept.items() if not fine)
        return replace(
            base, size_bytes=size_bytes, latency_ms=latency_ms, primary=figure, against_keras=found, misses=misses
        )

    def _settings(self, option: Option) -> dict[str, str]:
        found = self.conversion(option).recorded(option.scheme, Choices(option.ranges, option.float_layers))
        return found | ({"calibration_images": str(option.images)} if option.images else {})

    def _command(self, option: Option) -> str:
        config = self.config
        words = ["python", "-m", "export.convert", str(self.run.path), "--schemes", option.scheme.name]
        if takes_ranges(option.scheme):
            words += ["--ranges", option.ranges]
        if option.float_layers:
            words += ["--float-layers", *option.float_layers]
        if option.scheme.needs_calibration:
            words += ["--calibration-images", str(option.images or config.calibration_images)]
        if option.scheme.trained:
            words += ["--epochs", str(config.epochs), "--learning-rate", f"{config.learning_rate:g}"]
        words += ["--seed", str(config.seed)] if option.scheme.needs_calibration else []
        return shlex.join(words + (["--data", config.data] if config.data else []))


def worst_drop(found: Comparison) -> float:
    """Accuracy lost, fraction: as measured, or as expected and one standard error more, whichever is more."""
    return max(found.drop, found.expected_drop + found.expected_drop_error)


def drop_of(candidate: Candidate) -> float:
    """The same of a candidate, on the validation split."""
    return worst_drop(candidate.against_keras) if candidate.against_keras else 0.0


def not_accuracy(candidate: Candidate) -> int:
    """How many limits other than that of accuracy a candidate does not keep."""
    return len(set(candidate.misses) - {ACCURACY})


# --- the rungs ------------------------------------------------------------------------------------------------------


def post_training(search: Search) -> None:
    """int8 as it is, then with ranges that leave outliers out, then from fewer photos."""
    int8 = schemes.get("int8")
    fewer = max(FEW, len(search.run.output_names))  # one of each class at least
    choices = [("min-max", 0), ("no-odd-photos", 0), ("percentile-99.99", 0), ("mse", 0), ("percentile-99.9", 0)]
    for ranges, images in choices + [("min-max", fewer)] * (fewer < search.config.calibration_images):
        candidate = search.attempt(Option(int8, ranges, images=images))
        # Other ranges change neither size nor speed; and what can't be integer can't be so with other ranges.
        if candidate.fits or candidate.refused or not_accuracy(candidate):
            return


def dynamic(search: Search) -> None:
    """Weights in int8, computed in float: as small as int8, but no way out where it is slower than float32 and int8."""
    if not any(SIZE in each.misses for each in search.tried if each.scheme == "int8"):
        search.attempt(Option(schemes.get("dynamic_int8")))


def mixed(search: Search) -> None:
    """As few layers in float as are needed, the most harmful first: doubled until it fits, then halved back."""
    tried = [i for i, each in enumerate(search.tried) if each.scheme == "int8" and not each.refused]
    if not tried or any(not_accuracy(search.tried[i]) for i in tried):
        return
    base = search.options[min(tried, key=lambda i: drop_of(search.tried[i]))]
    harmful = search.harmful(base)

    def fits(count: int) -> bool:
        option = replace(base, scheme=schemes.get("mixed_int8"), float_layers=harmful[:count])
        return search.attempt(option).fits

    low, high = 0, 1
    while not fits(high):
        low, high = high, 2 * high
        if high > len(harmful) // 2:  # more float than integer: other schemes are cheaper
            return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)


def trained(search: Search) -> None:
    """Quantization-aware training."""
    if not any(not_accuracy(each) for each in search.tried if each.scheme == "int8"):
        search.attempt(Option(schemes.get("qat_int8")))


def float_weights(search: Search) -> None:
    """Where integers lose too much: weights in 16 bits, or, if there is no room for them, in 4."""
    if not search.attempt(Option(schemes.get("float16"))).fits and search.config.max_size_kb is not None:
        search.attempt(Option(schemes.get("int4_weights")))


LADDERS: dict[str, tuple[Callable[[Search], None], ...]] = {
    "cpu": (post_training, dynamic, mixed, trained, float_weights),
    "npu": (post_training, trained),
    "mcu": (post_training, trained),
}


# --- words ----------------------------------------------------------------------------------------------------------


def named(candidate: Candidate) -> str:
    """Scheme and what was chosen within it, short."""
    settings = dict(candidate.settings)
    layers = settings.pop("float_layers", "").split()
    words = [candidate.scheme, *(f"{len(layers)} in float" for _ in layers[:1])]
    return ", ".join([*words, *(_worded(name, value) for name, value in settings.items())])


def _worded(setting: str, value: str) -> str:
    counted = {"calibration_images": "photo", "epochs": "epoch"}
    if setting == "ranges":
        return value
    if setting in counted:
        return f"{value} {counted[setting]}{'s' * (value != '1')}"
    return f"{setting.replace('_', ' ')} {value}"


def told(candidate: Candidate) -> str:
    """One line on a candidate, while the search goes on."""
    if candidate.refused or not candidate.against_keras:
        return f"{named(candidate)}: {candidate.refused}"
    found = candidate.against_keras
    verdict = (
        "to compare with"
        if candidate.reference
        else "fits"
        if candidate.fits
        else "too "
        + ", ".join({ACCURACY: "inaccurate", SIZE: "large", LATENCY: "slow"}[miss] for miss in candidate.misses)
    )
    return (
        f"{named(candidate)}: drop {100 * found.drop:+z.2f} points "
        f"({100 * found.drop_low:+z.2f} to {100 * found.drop_high:+z.2f}), expected {_expected(found)}, "
        f"{candidate.size_bytes / 1e6:.2f} MB, "
        f"{candidate.latency_ms:.2f} ms: {verdict}"
    )


def _expected(found: Comparison) -> str:
    return f"{100 * found.expected_drop:.2f} ±{100 * found.expected_drop_error:.2f}"


def pareto_front(candidates: tuple[Candidate, ...]) -> frozenset[int]:
    """Positions of those that no other beats: at least as accurate, small and fast, and better in one of them.

    Latencies within LATENCY_NOISE of each other count as equal.
    """
    there = [(i, each) for i, each in enumerate(candidates) if not each.refused]

    def beaten(a: Candidate, b: Candidate) -> bool:
        faster = b.latency_ms < a.latency_ms * (1 - LATENCY_NOISE)
        no_slower = b.latency_ms <= a.latency_ms * (1 + LATENCY_NOISE)
        no_worse = b.primary >= a.primary and b.size_bytes <= a.size_bytes and no_slower
        return no_worse and (b.primary > a.primary or b.size_bytes < a.size_bytes or faster)

    return frozenset(i for i, each in there if not any(beaten(each, other) for _, other in there))


def show(found: Optimization) -> str:
    """A table of all candidates, and what came of them."""
    lines = _table(found)
    chosen = found.candidates[found.best]
    limits = [f"drop at most {100 * found.max_accuracy_drop:.2f} points"]
    limits += [f"{found.max_size_kb:.0f} kB"] if found.max_size_kb is not None else []
    limits += [f"{found.max_latency_ms:.2f} ms"] if found.max_latency_ms is not None else []
    front = sum(1 for each in found.candidates if each.against_keras)
    samples = chosen.against_keras.samples if chosen.against_keras else 0
    lines += [
        f"{front} artifacts on {samples} validation photos (Keras {100 * found.keras_primary:.2f} %); * Pareto front "
        f"of accuracy, size, latency ({found.device}, 1 thread)",
        "drop as measured; expected: of photos on which it differs, if what Keras says were the truth; both count",
    ]
    if found.test is None or found.test_against_keras is None:
        missed = ", ".join(chosen.misses)
        lines += [
            f"nothing keeps the limits ({', '.join(limits)}; target {found.target}). Nearest: {named(chosen)}, which "
            f"misses {missed}. It was not written; make it with",
            f"  {chosen.command}",
        ]
        return "\n".join(lines)
    test = found.test_against_keras
    lines += [
        f"chosen: {named(chosen)} ({', '.join(limits)}; target {found.target})",
        f"test split: {summary(found.test)}, {lost(test)}",
        f"file: {found.run}/export/{chosen.scheme}.tflite; again: {chosen.command}",
    ]
    float32 = found.candidates[0]
    if not float32.refused and chosen.latency_ms > (1 + LATENCY_NOISE) * float32.latency_ms:
        lines.append(
            f"on this machine it is slower than float32 ({chosen.latency_ms:.2f} against {float32.latency_ms:.2f} ms); "
            "--max-latency-ms rules that out"
        )
    if chosen.against_keras and chosen.against_keras.drop_high > found.max_accuracy_drop:
        lines.append(
            f"{samples} validation photos can't tell a drop of {100 * found.max_accuracy_drop:.2f} points for sure: "
            f"up to {100 * chosen.against_keras.drop_high:.2f} is possible (95 %). More validation photos narrow it"
        )
    return "\n".join(lines)


def status(found: Optimization) -> int:
    """Exit status: 0, or NOTHING_FITS."""
    return 0 if found.test else NOTHING_FITS


def lost(found: Comparison) -> str:
    """What was lost against Keras, in words."""
    parts = [f"drop {100 * found.drop:+z.2f} points ({100 * found.drop_low:+z.2f} to {100 * found.drop_high:+z.2f})"]
    if found.flips:
        parts.append(f"McNemar p {found.flips.mcnemar_p:.2g}")
    parts.append(f"says what Keras says on {100 * found.agreement:.2f} %")
    if found.calibration_error_before is not None and found.calibration_error_after is not None:
        errors = f"{100 * found.calibration_error_before:.2f} -> {100 * found.calibration_error_after:.2f} %"
        parts.append(f"calibration error {errors}")
    return ", ".join(parts)


def _table(found: Optimization) -> list[str]:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("candidate", overflow="fold")
    for title in (f"{PRIMARY[found.task]} %", "drop", "95 % interval", "expected", "as Keras %", "MB", "ms", ""):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    front = pareto_front(found.candidates)
    for index, each in enumerate(found.candidates):
        if each.refused or not each.against_keras:
            table.add_row(named(each), *[""] * 8, "refused")
            continue
        result = each.against_keras
        verdict = "" if each.reference else "chosen" if index == found.chosen else ", ".join(each.misses) or "fits"
        table.add_row(
            named(each),
            f"{100 * each.primary:.2f}",
            f"{100 * result.drop:+z.2f}",
            f"{100 * result.drop_low:+z.2f} to {100 * result.drop_high:+z.2f}",
            _expected(result),
            f"{100 * result.agreement:.2f}",
            f"{each.size_bytes / 1e6:.2f}",
            f"{each.latency_ms:.2f}",
            "*" if index in front else "",
            verdict,
        )
    refused = [f"{named(each)}: {each.refused}" for each in found.candidates if each.refused]
    return [*table_lines(table, 120), *refused]


def _device() -> str:
    from export.device.host import describe_host

    host = describe_host()
    return f"{host.cpu}, {host.cores} core(s)"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show, status=status))
