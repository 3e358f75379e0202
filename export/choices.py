"""What can be chosen within a scheme; light, so that a wrong choice is told before TensorFlow starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgetl.errors import ConfigError
from export.calibrate import METHODS
from export.schemes import Scheme


@dataclass(frozen=True)
class Choices:
    """What can be chosen within a scheme."""

    ranges: str = "min-max"
    """How the ranges of int8 activations come out of what calibration saw: a row of `calibrate.METHODS`."""
    float_layers: tuple[str, ...] = ()
    """Keras layers that mixed_int8 leaves in floating point."""


USUAL = Choices()


def refuse_choices(schemes: Sequence[Scheme], choices: Choices) -> None:
    """Refuse choices that the schemes asked for do not know.

    Raises:
        ConfigError: names the option.
    """
    if choices.ranges not in METHODS:
        raise ConfigError(f"--ranges {choices.ranges}: unknown. Choose from: {', '.join(METHODS)}")
    mixed = [scheme.name for scheme in schemes if scheme.mixed]
    if mixed and not choices.float_layers:
        raise ConfigError(
            f"{mixed[0]}: name the layers that stay in float with --float-layers; python -m export.optimize finds them"
        )
    if choices.float_layers and not mixed:
        raise ConfigError(
            f"--float-layers {' '.join(choices.float_layers)}: is for mixed_int8. Leave it out, or ask for it"
        )
    if choices != Choices(float_layers=choices.float_layers) and not any(map(takes_ranges, schemes)):
        raise ConfigError(f"--ranges {choices.ranges}: is for int8, int8_io8 and mixed_int8. Leave it out")


def takes_ranges(scheme: Scheme) -> bool:
    """Whether the way in which ranges are chosen makes a difference."""
    return scheme.activations == "int8" and not scheme.trained


def recorded(scheme: Scheme, choices: Choices) -> dict[str, str]:
    """The choices that made a difference, for the artifact's description."""
    found = {"ranges": choices.ranges} if takes_ranges(scheme) else {}
    return found | ({"float_layers": " ".join(choices.float_layers)} if scheme.mixed else {})
