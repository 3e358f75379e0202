"""How a model may be stored and computed on a device. One row per scheme.

Names compose: each row can also be had `pruned_` or `clustered_`, made from a model that was pruned or clustered first.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from edgetl.errors import ConfigError


@dataclass(frozen=True)
class Scheme:
    """One way to quantize."""

    name: str
    weights: Literal["float32", "float16", "int8", "int4"]
    activations: Literal["float32", "int8", "int16"]
    io: Literal["float32", "uint8", "int8"]
    """Element type of the input (raw pixels 0..255, for int8 less 128) and output tensor."""
    summary: str
    mixed: bool = False
    """Whether named layers stay in floating point."""
    trained: bool = False
    """Whether quantization takes part in training (QAT)."""
    compression: str = ""
    """A row of COMPRESSIONS that the model goes through first."""

    @property
    def needs_calibration(self) -> bool:
        """Whether photos are needed: for the ranges of activations, or for the rounding of integer weights."""
        return self.weights in ("int8", "int4")

    @property
    def integer(self) -> bool:
        """Whether every operator computes in integers."""
        return self.activations == "int8" and not self.mixed


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("float32", "float32", "float32", "float32", "the Keras model as it is"),
        Scheme("float16", "float16", "float32", "float32", "weights stored in half the bytes, computed in float"),
        Scheme("dynamic_int8", "int8", "float32", "float32", "int8 weights, activations quantized on the fly"),
        Scheme("int8", "int8", "int8", "uint8", "integers only: raw uint8 pixels in, uint8 out"),
        Scheme("int8_io8", "int8", "int8", "int8", "integers only: int8 in (pixel - 128) and out"),
        Scheme("int16x8", "int8", "int16", "float32", "int8 weights, int16 activations: precise, slow on CPUs"),
        Scheme("int4_weights", "int4", "float32", "float32", "weights of convolutions in 4 bits, computed in float"),
        Scheme("mixed_int8", "int8", "int8", "uint8", "int8, but for named layers that stay in float", mixed=True),
        Scheme("qat_int8", "int8", "int8", "uint8", "int8 after quantization-aware training", trained=True),
    )
}

COMPRESSIONS: dict[str, str] = {
    "pruned": "the smallest weights trained away to zero",
    "clustered": "few distinct weights per layer",
}


def get(name: str) -> Scheme:
    """Look a scheme up, or compose it: `pruned_int8`.

    Raises:
        ConfigError: no such scheme.
    """
    compression, _, rest = name.partition("_")
    if compression in COMPRESSIONS and rest in SCHEMES:
        row = SCHEMES[rest]
        summary = f"{row.summary}; {COMPRESSIONS[compression]}"
        return dataclasses.replace(row, name=name, summary=summary, compression=compression)
    if name not in SCHEMES:
        prefixes = " or ".join(f"{prefix}_" for prefix in COMPRESSIONS)
        raise ConfigError(
            f"unknown scheme {name!r}. Choose from: {', '.join(SCHEMES)}; each also with {prefixes} before it"
        )
    return SCHEMES[name]
