"""The int8 form of a model that is not a run: what a choice among models needs to know of the device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgetl.console import log, progress
from edgetl.errors import ArtifactError
from export import schemes
from export.artifacts import device_errors
from export.calibrate import Range

if TYPE_CHECKING:
    import keras


def int8_form(
    model: "keras.Model",
    photos: Sequence[NDArray[np.uint8]],
    *,
    units: Sequence[float] = (1.0,),
    span: Range | None = None,
    rounding: bool = True,
) -> tuple[bytes, str]:
    """Convert a model to int8.

    Args:
        model: raw pixels in, in the form in which it is saved.
        photos: for calibration, uint8 [h, w, 3].
        units: see `Quantizer`; as are `span` and `rounding`. Size and time are those of any weights: where only these
            count, nothing needs to be rounded with care.
        span: see `Quantizer`.
        rounding: see `Quantizer`.

    Returns:
        The .tflite file and nothing; or nothing, and why there is no such form.
    """
    from export.quantize import Quantizer

    with progress("convert to int8"), device_errors():
        try:
            quantizer = Quantizer(model, photos, units=units, span=span, rounding=rounding)
            return quantizer.quantize(schemes.get("int8")).tflite, ""
        except ArtifactError as error:
            log.warning("%s", error)
            return b"", str(error)
