"""Everything that a page can tell of a run, read from its files; what is not there is None or empty."""

import csv
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.audit.findings import Audit
from edgetl.errors import ArtifactError
from edgetl.history import Epoch, from_csv
from edgetl.outputs import OutputSpec
from edgetl.rundir import RunDir, read_json
from export import schemes
from export.artifacts import Artifact, find_artifacts
from export.evaluate import ArtifactScores, EvaluationReport, Stored, predictions_of
from export.reporting.joined import Report

HISTORY = "history.csv"
AUDIT = "audit.json"


@dataclass(frozen=True)
class Layer:
    """One operator of an int8 artifact, as `export.layers` measured it."""

    name: str
    operator: str
    effect: float
    """Mean absolute change of a score, or of a target in its deviations, when its result alone is rounded."""
    accumulated_db: float
    """Signal to noise of all error until there, dB."""
    saturation: float
    """Share of values, 0..1, that the range cuts off."""


@dataclass(frozen=True, eq=False)
class Material:
    """A run, and all that was measured on it."""

    run: RunDir
    report: Report
    evaluation: EvaluationReport
    artifacts: tuple[Artifact, ...]
    """In the order of the report."""
    said: Stored
    """What the models say of the same test photos."""
    history: tuple[Epoch, ...]
    layers: dict[str, tuple[Layer, ...]]
    """Scheme -> operators in execution order."""
    audit: Audit | None
    settings: dict[str, Any]
    """config.json."""
    splits: dict[str, Counter[str]]
    """Split -> label as written down -> photos."""
    grouped: bool
    """Whether any photo belongs to a group."""
    data: str
    """Where the photos are, if they were moved since the run."""

    @property
    def spec(self) -> OutputSpec:
        """What the outputs stand for."""
        return self.run.outputs

    @property
    def where(self) -> str:
        """The run directory, as a shell takes it."""
        return shlex.quote(str(self.run.path))

    @property
    def shipped(self) -> str:
        """The artifact to ship first."""
        return self.report.recommended

    @property
    def quantized(self) -> str:
        """The artifact that is held against Keras: the one to ship, unless that computes as Keras does."""
        if schemes.get(self.shipped).weights != "float32":
            return self.shipped
        others = [row.scheme for row in self.report.artifacts if schemes.get(row.scheme).weights != "float32"]
        return "int8" if "int8" in others else (*others, self.shipped)[0]

    def result(self, scheme: str) -> ArtifactScores:
        """What an artifact scored."""
        return next(each for each in self.evaluation.artifacts if each.scheme == scheme)


def gather(run: RunDir, report: Report, evaluation: EvaluationReport, *, data: str, audit: Path | None) -> Material:
    """Read what there is.

    Args:
        run: a finished run.
        report: see `export.reporting.joined`.
        evaluation: that it is from.
        data: where the photos are now, if they were moved.
        audit: the --out of `recipes.audit`; None: RUN/audit, if that is there.

    Raises:
        RunError: a file is damaged.
        ArtifactError: predictions are not those of the evaluation, or the audit that was named is missing or is
            of other labels.
    """
    rows = list(run.rows.values())
    history = run.path / HISTORY
    return Material(
        run=run,
        report=report,
        evaluation=evaluation,
        artifacts=find_artifacts(run, [row.scheme for row in report.artifacts]),
        said=predictions_of(run, evaluation),
        history=from_csv(history.read_text(encoding="utf-8"), str(history)) if history.is_file() else (),
        layers={
            row.scheme: _layers(path) for row in report.artifacts if (path := _layer_file(run, row.scheme)).is_file()
        },
        audit=_audit(run, audit),
        settings=run.settings,
        splits={
            split: Counter(row["label"] for row in rows if row["split"] == split)
            for split in ("train", "validation", "test")
        },
        grouped=any(row["group"] for row in rows),
        data=data,
    )


def _layer_file(run: RunDir, scheme: str) -> Path:
    return run.export_path / f"{scheme}.layers.csv"


def _layers(path: Path) -> tuple[Layer, ...]:
    """Read what `export.layers` wrote; of a damaged file nothing can be told."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return tuple(
            Layer(
                name=row["layers"].split("; ")[0] or row["tensor"].split("/")[-1],
                operator=row["operator"],
                effect=float(row["effect"]),
                accumulated_db=float(row["accumulated_sqnr_db"]),
                saturation=float(row["saturation"]),
            )
            for row in rows
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged ({error}). Run python -m export.layers again, or delete it") from None


def _audit(run: RunDir, folder: Path | None) -> Audit | None:
    path = (folder or run.path / "audit") / AUDIT
    if folder is None and not path.is_file():
        return None
    if not path.is_file():
        raise ArtifactError(f"--audit {folder}: no {AUDIT} there. Name the --out of python -m recipes.audit")
    audit, outputs = read_json(Audit, path), run.outputs
    if audit.task != outputs.task or set(audit.output_names) != set(outputs.names):
        raise ArtifactError(
            f"{path}: an audit of {audit.task} ({', '.join(audit.output_names):.60}), the run is {outputs.task} "
            f"({', '.join(outputs.names):.60}). Audit the run's labels (recipes.audit --task ...), or name another"
        )
    return audit
