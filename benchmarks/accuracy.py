"""What quantization costs on real photos: `python -m benchmarks.accuracy`.

Runs the feature-extraction recipe, converts and evaluates over several seeds (each its own split and head), and prints
the accuracy of every artifact, its drop against float32, and the largest difference of the float32 artifact to Keras.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgetl.config import command, to_json
from export import convert, evaluate
from export.flatbuffer import unpack
from recipes import feature_extraction


@dataclass(frozen=True)
class Config:
    """Measure the accuracy of all artifacts over seeds."""

    data: str = "elpv"
    """Photos."""
    backbone: str = "EfficientNetLite0"
    """Pretrained network."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of split and head."""
    image_size: int = 0
    """Side of the input, pixels; 0 means the backbone's own."""
    json: Path | None = None
    """Also write the raw figures here."""


@dataclass(frozen=True)
class Row:
    """One artifact of one seed."""

    seed: int
    scheme: str
    samples: int
    top1: float
    drop: float
    """Against float32 of the same seed."""
    agreement: float
    max_difference: float
    """Of a probability, against Keras."""
    size_bytes: int
    constant_bytes: int
    """Weights inside the file."""


@dataclass(frozen=True)
class Rows:
    """All of them."""

    rows: tuple[Row, ...]


def main(config: Config) -> Rows:
    """Run every seed."""
    rows: list[Row] = []
    for seed in config.seeds:
        with tempfile.TemporaryDirectory() as folder:
            run = feature_extraction.main(
                feature_extraction.Config(
                    data=config.data,
                    out=Path(folder) / "run",
                    backbone=config.backbone,
                    seed=seed,
                    image_size=config.image_size,
                )
            )
            artifacts = {artifact.scheme: artifact for artifact in convert.main(convert.Config(run.path))}
            report = evaluate.main(evaluate.Config(run.path))
            reference = next(a.scores.primary for a in report.artifacts if a.scheme == "float32")
            for scored in report.artifacts:
                file = run.export_path / artifacts[scored.scheme].path
                buffers = unpack(file.read_bytes()).buffers
                rows.append(
                    Row(
                        seed,
                        scored.scheme,
                        scored.scores.samples,
                        scored.scores.primary,
                        reference - scored.scores.primary,
                        scored.against_keras.agreement,
                        scored.against_keras.max_difference,
                        artifacts[scored.scheme].size_bytes,
                        sum(len(buffer.data) for buffer in buffers if buffer.data is not None),
                    )
                )
    result = Rows(tuple(rows))
    if config.json:
        config.json.write_text(to_json(result))
    return result


def show(result: Rows) -> str:
    """A table: one line per scheme, mean over seeds, then each seed."""
    lines = [
        "scheme         top-1 % mean (each seed)                    drop mean   worst  as Keras  max diff  size/weights"
    ]
    for scheme in dict.fromkeys(row.scheme for row in result.rows):
        rows = [row for row in result.rows if row.scheme == scheme]
        each = " ".join(f"{100 * row.top1:.2f}" for row in rows)
        lines.append(
            f"{scheme:14} {100 * _mean(r.top1 for r in rows):.2f} ({each})  "
            f"{_mean(r.drop for r in rows):+.4f}  {max(r.drop for r in rows):+.4f}  "
            f"{100 * _mean(r.agreement for r in rows):6.2f} %  {max(r.max_difference for r in rows):.1e}  "
            f"{rows[0].size_bytes} / {rows[0].constant_bytes}"
        )
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


if __name__ == "__main__":
    sys.exit(command(main, Config, prog="python -m benchmarks.accuracy", show=show))
