"""Bundles that say something else than `export.bundle` made them say."""

import hashlib
import json
from pathlib import Path


def tell(folder: Path, **changes: object) -> None:
    """Say something else in bundle.json, which then vouches for the files as they are: an attacker would."""
    about = json.loads((folder / "bundle.json").read_bytes()) | changes
    about.pop("seal", None)
    for name in about["files"]:
        about["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(about))
