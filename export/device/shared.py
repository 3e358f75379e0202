"""Files of the library that devices need as well: packed beside this package, on the host where they always are."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import DeviceError

PACKAGES = ("edgetl_photos", "edgetl")
"""Where they are: packed by `export.bundle`, or on the host."""


def shared(name: str) -> Any:
    """Import one of them, wherever it is."""
    for package in PACKAGES:
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
    raise DeviceError(f"{PACKAGES[0]}: missing from the device program. Copy the bundle again")
