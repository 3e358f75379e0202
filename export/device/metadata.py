"""What a .tflite file says about itself: `edgetl.json`, in the zip at its end.

Readers of TFLite skip what follows the model. Whatever is there comes from anywhere: nothing in here takes more memory
than a few times the constants below, and what can't be right is a `DeviceError`.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

from .errors import DeviceError
from .outputs import Outputs
from .parsing import parsed

FILE = "edgetl.json"
SCHEMA_VERSION = 2
"""Goes up when older readers would misunderstand the file."""
MAX_JSON_BYTES = 1 << 20
"""Largest `edgetl.json`: the names of some 20 000 classes."""
TAIL_BYTES = MAX_JSON_BYTES + (1 << 18)
"""The zip's directory, and `edgetl.json`, must lie in so many bytes at the file's end."""
SHIFTS = (0, 128)
_BROKEN = (zipfile.BadZipFile, ValueError, RuntimeError, EOFError, OSError, OverflowError, struct.error)
"""What zipfile and json raise on damaged input (RecursionError and NotImplementedError are RuntimeErrors)."""


@dataclass(frozen=True)
class About:
    """What device code reads of `edgetl.json`."""

    outputs: Outputs
    """What the model says of a photo."""
    inputs: dict[str, Any]
    """How a photo becomes the input, as edgetl's InputSpec spells it: `kind`, `height`, `width`, `resize`."""
    pixel_shift: int
    """Subtracted from raw pixels 0..255: 128 for an int8 input, else 0."""
    everything: dict[str, Any]
    """The whole of `edgetl.json`: scheme, backbone, licence, hash of the run, versions, ..."""


def read_about(tflite: bytes, where: str = "model") -> About | None:
    """Read what a model says about itself.

    Args:
        tflite: the file's bytes.
        where: what messages call it.

    Returns:
        None where there is no `edgetl.json`: no zip, or one that others made or that was cut.

    Raises:
        DeviceError: there is one, but it is damaged or from a later version.
    """
    try:
        # zipfile finds its way in a part of a file: it counts from the end.
        archive = zipfile.ZipFile(io.BytesIO(tflite[-TAIL_BYTES:]))
    except _BROKEN:
        return None
    with archive:
        members = [member for member in archive.infolist() if member.filename == FILE]
        if not members:
            return None
        try:
            if len(members) > 1:
                raise ValueError("it is there twice")
            return _parsed(_content(archive, members[0]))
        except _BROKEN as error:
            why = " ".join(str(error).split())[:200]
            raise DeviceError(f"{where}: its {FILE} can't be used: {why}. Copy or convert the file again") from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type != zipfile.ZIP_STORED:  # a small file could unpack to a large one
        raise ValueError("it is compressed")
    if member.file_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {member.file_size} bytes, more than {MAX_JSON_BYTES}")
    with archive.open(member) as file:
        return file.read()  # bounded by the file's own size, as nothing is unpacked; checks the CRC


def _parsed(text: bytes) -> About:
    found = json.loads(text.decode("utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"schema_version {version!r:.20}, this code reads {SCHEMA_VERSION}")
    inputs, tensor = (found.get(key) for key in ("inputs", "input_tensor"))
    outputs: Outputs = parsed(Outputs, found.get("outputs"), "outputs")
    outputs.refuse()
    if not isinstance(inputs, dict) or not isinstance(tensor, dict):
        raise ValueError("inputs or input_tensor is not an object")
    shift = tensor.get("pixel_shift")
    if type(shift) is not int or shift not in SHIFTS:
        raise ValueError(f"pixel_shift {shift!r:.20}, expected one of {SHIFTS}")
    return About(outputs, inputs, shift, found)
