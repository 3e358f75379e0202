"""A run's Keras model becomes .tflite files, one per scheme: `python -m export.convert RUN`.

Every artifact is converted and checked in memory before it gets its name.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from edgetl.config import checked, command
from edgetl.console import progress
from edgetl.errors import ConfigError
from edgetl.rundir import held
from export import schemes
from export.artifacts import Artifact, device_errors
from export.choices import Choices, refuse_choices
from export.conversion import Conversion, Making, opened

PROG = "python -m export.convert"
USUAL = ("float32", "float16", "dynamic_int8", "int8")


@dataclass(frozen=True)
class Config(Making):
    """Convert a run's model into .tflite artifacts, RUN/export/<scheme>.tflite."""

    run: Positional[Path]
    """Run directory (the --out of a recipe)."""
    schemes: tuple[str, ...] = USUAL
    """Which artifacts to make: float32, float16, dynamic_int8, int8, int8_io8, int16x8, int4_weights, mixed_int8,
    qat_int8; each also with pruned_ or clustered_ before it."""
    ranges: str = "min-max"
    """How int8 ranges come out of what calibration saw: min-max, no-odd-photos, percentile-99.99,
    percentile-99.9, mse."""
    float_layers: tuple[str, ...] = ()
    """Keras layers that mixed_int8 leaves in floating point; `export.optimize` finds which."""


def main(config: Config) -> tuple[Artifact, ...]:
    """Convert, check and write one artifact per scheme.

    Returns:
        What was written, in the order of `config.schemes`.

    Raises:
        ConfigError: unknown scheme, no calibration images asked for.
        RunError: the run is missing, unfinished or damaged, or another process is writing it.
        DatasetError: no calibration photo can be read.
        ArtifactError: a converted model breaks the contract of its scheme (see `export.quantize`).
    """
    config = checked(config)
    wanted = [schemes.get(name) for name in dict.fromkeys(config.schemes)]
    if not wanted:
        raise ConfigError(f"no scheme asked for. Choose from: {', '.join(schemes.SCHEMES)}")
    choices = Choices(config.ranges, config.float_layers)
    refuse_choices(wanted, choices)
    written = []
    with held(opened(config.run, config)) as run, device_errors():
        conversion = Conversion(run, config)
        with progress("export", len(wanted)) as bar:
            for scheme in wanted:
                made = conversion.make(scheme, choices)
                written.append(conversion.write(scheme, made, choices))
                bar.advance()
    return tuple(written)


def show(artifacts: tuple[Artifact, ...]) -> str:
    """One line per artifact written; of values in integers, also which they can be."""
    return "\n".join(f"{a.path}  {a.size_bytes / 1e6:.2f} MB  {a.operators} operators{_grid(a)}" for a in artifacts)


def _grid(artifact: Artifact) -> str:
    """The range and the steps of an integer output that is no score."""
    if artifact.outputs.task != "regression" or artifact.output_type == "float32":
        return ""
    stored = np.iinfo(artifact.output_type)
    low, high = (artifact.output_scale * (end - artifact.output_zero_point) for end in (stored.min, stored.max))
    return f"  values {low:.4g} to {high:.4g} in steps of {artifact.output_scale:.3g}, cut off beyond"


if __name__ == "__main__":
    sys.exit(command(main, Config, prog=PROG, show=show))
