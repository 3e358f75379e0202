"""How a model may be stored and computed on a device. One row per scheme."""

from dataclasses import dataclass
from typing import Literal

from edgetl.errors import ConfigError


@dataclass(frozen=True)
class Scheme:
    """One way to quantize."""

    name: str
    weights: Literal["float32", "float16", "int8"]
    activations: Literal["float32", "int8"]
    io: Literal["float32", "uint8"]
    """Element type of the input (raw pixels 0..255 in both cases) and output tensor."""
    summary: str

    @property
    def needs_calibration(self) -> bool:
        """Whether photos are needed: for the ranges of activations, or for the rounding of int8 weights."""
        return self.weights == "int8"


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "float32", "float32", "float32", "the Keras model as it is"),
        Scheme("float16", "float16", "float32", "float32", "weights stored in half the bytes, computed in float"),
        Scheme("dynamic_int8", "int8", "float32", "float32", "int8 weights, activations quantized on the fly"),
        Scheme("int8", "int8", "int8", "uint8", "integers only: raw uint8 pixels in, uint8 probabilities out"),
    )
}


def get(name: str) -> Scheme:
    """Look a scheme up.

    Raises:
        ConfigError: no such scheme.
    """
    if name not in SCHEMES:
        raise ConfigError(f"unknown scheme {name!r}. Choose from: {', '.join(SCHEMES)}")
    return SCHEMES[name]
