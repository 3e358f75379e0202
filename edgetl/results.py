"""The end of every run: its files are written, or those of an earlier one are taken as the result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetl import rundir
from edgetl.config import to_json
from edgetl.console import log
from edgetl.data import Example, Examples, Splits, write_csv, written
from edgetl.data.manifest import OWN
from edgetl.errors import RunError
from edgetl.features import Features
from edgetl.inputs import InputSpec
from edgetl.outputs import OutputSpec
from edgetl.rundir import RunDir
from edgetl.scores import Scores, summary

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Metrics:
    """What every `metrics.json` holds; whoever makes the run may add its own."""

    validation: Scores
    test: Scores | None
    """None where no photo was held out: all of them trained the model, or chose among models."""
    head: str
    """Where the head comes from, in words: what was chosen on validation, or which file."""
    unreadable: tuple[str, ...]
    """Ids of photos that could not be read, and are in no split."""


def tested(metrics: Metrics) -> str:
    """The figure of the test photos in words, or that there is none."""
    return f"test {summary(metrics.test)}" if metrics.test else "no photos were held out for testing"


def hashes_of(table: Features) -> dict[str, str]:
    """sha256 of every photo that was used, by id."""
    return {example.id: sha256 for example, sha256 in zip(table.examples, table.sha256, strict=True)}


def reopen(
    run: RunDir,
    examples: Examples,
    kind: type[Metrics] = Metrics,
    *,
    made: str = "finished",
    advice: str = "Choose another --out",
    told: str = "already finished with these settings",
) -> RunDir:
    """Take a finished run as the result, if it is one of the photos that are there now.

    Args:
        run: the directory, with a manifest.
        examples: the photos that are there.
        kind: what its `metrics.json` holds.
        made: what was done with other photos, for the message.
        advice: what to do then.
        told: what the log says of a run that is taken.

    Further columns do not change what a run is: where they say something else now, a warning tells which ones count.

    Raises:
        RunError: photos came or went since, or something that the run was made with is said of them otherwise.
    """
    finished = rundir.open_run(run.path)
    known = set(finished.photo_sha256) | set(rundir.read_json(kind, finished.path / rundir.METRICS).unreadable)
    there = {example.id for example in examples}
    if known != there:
        raise RunError(
            f"{run.path}: {made} with other photos ({len(there - known)} came, {len(known - there)} went since). "
            f"{advice}"
        )
    if changed := [item.id for item in examples if item.id in finished.rows and _differs(finished, examples, item)]:
        raise RunError(
            f"{run.path}: {made} with another label, group, weight or split of {len(changed)} photo(s) ({changed[0]}). "
            f"{advice}"
        )
    if edited := [item.id for item in examples if item.id in finished.rows and _edited(finished, examples, item)]:
        log.warning(
            "%s: further columns of %d photo(s) (%s) were edited since, slices are cut by those in %s. %s for new ones",
            run.path,
            len(edited),
            edited[0],
            run.path / rundir.SPLITS,
            advice,
        )
    log.info("%s: %s", run.path, told)
    return finished


def _edited(run: RunDir, examples: Examples, item: Example) -> bool:
    """Whether a table's further columns, which slices are cut by, are not those that they were."""
    stored = {column: value for column, value in run.rows[item.id].items() if column not in OWN}
    return stored != dict(zip(examples.columns, item.values, strict=True))


def _differs(run: RunDir, examples: Examples, item: Example) -> bool:
    """Whether a table says something else of an example than it did."""
    row = run.rows[item.id]
    moved = item.split in ("validation", "test") and item.split != row["split"]
    return moved or written(examples, item) != (row["label"], row["group"], row["weight"])


def save(
    run: RunDir,
    recipe: str,
    spec: InputSpec,
    outputs: OutputSpec,
    model: "keras.Model",
    table: Features,
    splits: Splits,
    metrics: Metrics,
    *,
    seed: int,
    extra: Mapping[str, bytes | str] | None = None,
) -> None:
    """Write every file of the run; the manifest, which makes it a finished one, comes last.

    Args:
        run: the directory, held for writing.
        recipe: what made it.
        spec: the input contract.
        outputs: what the model says.
        model: raw pixels -> outputs.
        table: one row for each photo that could be read, with its hash.
        splits: of the same photos.
        metrics: its figures.
        seed: of the split and of everything random.
        extra: further results, file name -> content; the manifest vouches for them as well.
    """
    run.write(rundir.INPUTS, to_json(spec))
    run.write(rundir.OUTPUTS, to_json(outputs))
    run.write(rundir.LABELS, "".join(f"{name}\n" for name in outputs.names))
    run.write(rundir.SPLITS, write_csv(splits, hashes_of(table)))
    run.write_model(model)
    run.write(rundir.METRICS, to_json(metrics))
    for name, content in (extra or {}).items():
        run.write(name, content)
    run.finish(
        recipe=recipe,
        data=table.examples.location,
        data_sha256=table.data_sha256,
        seed=seed,
        extra=tuple(extra or ()),
    )
