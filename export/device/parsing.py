"""JSON into dataclasses, with nothing but the standard library."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any


def parsed(kind: Any, value: Any, where: str = "") -> Any:
    """Turn parsed JSON into a dataclass (or what its fields hold), checking every type.

    Args:
        kind: a dataclass, a tuple or dict of one type, an Optional, or a plain type.
        value: as `json.loads` gives it.
        where: what messages call it; empty for the whole file.

    Raises:
        ValueError: something is missing, unknown or of another type.
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            have = set(value) if isinstance(value, dict) else set()
            raise ValueError(f"{where or 'top level'}: missing or unknown {sorted(have ^ set(hints))}")
        fields = {name: parsed(hint, value[name], f"{where}.{name}".lstrip(".")) for name, hint in hints.items()}
        made: Any = kind
        return made(**fields)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union:  # Optional is the only one
        return None if value is None else parsed(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(parsed(inner[0], each, f"{where}[{number}]") for number, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {name: parsed(inner[1], each, f"{where}[{name!r}]") for name, each in value.items()}
    if kind is Any or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"{where}: expected {getattr(kind, '__name__', kind)}, received {value!r:.40}")
