"""Stored JSON with other values, as if a command had written these: the seal of what was there would no longer fit."""

import json
from pathlib import Path
from typing import Any


def edit(path: Path, **values: Any) -> None:
    """Put other values in the fields of a JSON file, and take its seal off."""
    stored = json.loads(path.read_bytes())
    stored.pop("seal", None)
    path.write_text(json.dumps(stored | values))


def unseal(path: Path, old: str, new: str) -> None:
    """Replace text in a JSON file, and take its seal off."""
    edit(path)
    stored = json.loads(path.read_text().replace(old, new))
    path.write_text(json.dumps(stored, indent=2))


def vouch(manifest: Path, name: str, sha256: str) -> None:
    """Let a run's manifest have another hash of one file."""
    edit(manifest, files=json.loads(manifest.read_bytes())["files"] | {name: sha256})
