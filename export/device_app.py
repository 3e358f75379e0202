"""The device program as one file: `export/device` and training's reader of photos, packed as a zipapp."""

import io
import zipfile
from pathlib import Path

import edgetl
from export import device

SHARED = ("errors.py", "inputs.py", "printable.py", "seal.py", "data/geometry.py", "data/images.py")
"""Files of edgetl that devices need: they import one another by their place, numpy and Pillow, nothing else."""
MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.stderr.write("edgetl-device.pyz: needs Python 3.9 or later. This is Python %d.%d\\n" % sys.version_info[:2])
    sys.exit(2)
try:
    from edgetl_device.cli import main
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(main())
"""
_SHEBANG = b"#!/usr/bin/env python3\n"
_DATE = (1980, 1, 1, 0, 0, 0)
"""The same sources give the same bytes."""


def build() -> bytes:
    """Pack the program.

    Returns:
        A zipapp for Python 3.9 and later. Its packages have names of their own, so that an edgetl that is installed
        on the device is never mixed with it.
    """
    ours, library = Path(device.__file__).parent, Path(edgetl.__file__).parent
    files = {f"edgetl_device/{path.name}": path.read_bytes() for path in sorted(ours.glob("*.py"))}
    files |= {f"edgetl_photos/{name}": (library / name).read_bytes() for name in SHARED}
    files |= {"edgetl_photos/__init__.py": b"", "edgetl_photos/data/__init__.py": b"", "__main__.py": MAIN.encode()}
    packed = io.BytesIO(_SHEBANG)
    packed.seek(0, io.SEEK_END)
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED, 9)
    return packed.getvalue()
