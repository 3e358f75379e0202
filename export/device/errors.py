"""The one error that device code raises on purpose."""

from __future__ import annotations


class DeviceError(Exception):
    """A model or an image can't be used on this device; the message is one line: what, where, what to do."""
