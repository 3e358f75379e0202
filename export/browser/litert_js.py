"""LiteRT.js, fetched once through npm, pinned by hash; from then on it comes out of the cache.

Its packages are 12 MB, too much to commit. They are kept as npm delivers them, so that one hash per package vouches
for what a bundle gets, each time.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import distributions
from io import BytesIO
from pathlib import Path

from edgetl.console import progress
from edgetl.errors import ArtifactError
from edgetl.features import default_cache
from edgetl.rundir import write_atomic

PATIENCE_S = 600
"""How long npm may take: 12 MB, over a slow line, with its own retries."""
WITHOUT = "or leave the web page out with --no-web"
WAYS_OUT = f"Check npm and the network and try again, {WITHOUT}"


@dataclass(frozen=True)
class Package:
    """One version of an npm package."""

    name: str
    version: str
    integrity: str
    """Of the .tgz file: base64 of its SHA-512, as npm writes it after `sha512-`."""
    files: dict[str, str]
    """Member of the .tgz -> what the page calls it."""

    @property
    def tgz(self) -> str:
        """What `npm pack` calls the file."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


VARIANTS = ("litert_wasm_internal", "litert_wasm_compat_internal")
"""Builds of the runtime that the page chooses from; it fetches one of them.

The first computes with relaxed SIMD, which fuses multiplication and addition as XNNPACK does on any CPU of today: bit-
equal floats. The second is for browsers without (Safari): floats differ in the last bit. Neither needs threads: those
take the COOP and COEP headers, which a plain static host does not send.
"""
PACKAGES = (
    Package(
        "@litertjs/core",
        "2.5.3",
        "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        {"package/dist/index.js": "core.js"}
        | {f"package/wasm/{variant}{ext}": f"{variant}{ext}" for variant in VARIANTS for ext in (".js", ".wasm")},
    ),
    Package(
        "@litertjs/wasm-utils",
        "2.5.3",
        "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        {"package/dist/index.js": "wasm-utils.js"},
    ),
)
RUNTIME = f"LiteRT.js {PACKAGES[0].version}"


def unpack(folder: Path) -> None:
    """Write what the page needs of LiteRT.js, with its licence; fetch it if the cache lacks it.

    Args:
        folder: made here.

    Raises:
        ArtifactError: npm is missing or fails, or delivers something else than what was pinned.
    """
    contents = [_content(package) for package in PACKAGES]
    folder.mkdir()
    for package, content in zip(PACKAGES, contents, strict=True):
        with tarfile.open(fileobj=BytesIO(content)) as archive:
            for member, name in package.files.items():
                file = archive.extractfile(member)
                assert file is not None, f"{package.tgz}: {member} is no file, though the hash is right"
                (folder / name).write_bytes(file.read())
    names = " and ".join(f"{package.name} {package.version}" for package in PACKAGES)
    notice = f"The JavaScript and WebAssembly files are unmodified parts of {names}.\nCopyright Google LLC.\n"
    # Their packages name this licence and come without its text, which is edgetl's own as well. In a source tree that
    # was built there, an egg-info without it may come first.
    texts = (each.read_text("licenses/LICENSE") for each in distributions(name="edgetl"))
    (folder / "LICENSE").write_text(f"{notice}\n{next(filter(None, texts))}")


def _content(package: Package) -> bytes:
    """Bytes of a package's .tgz, out of the cache or from npm."""
    path = default_cache() / "npm" / package.tgz
    if path.is_file() and _is_right(content := path.read_bytes(), package):
        return content
    with tempfile.TemporaryDirectory() as folder, progress(f"fetch {package.name}"):
        _npm_pack(package, folder)
        content = (Path(folder) / package.tgz).read_bytes()
    if not _is_right(content, package):
        raise ArtifactError(
            f"{package.tgz}: npm delivered another file than the pinned one (sha512 differs). {WAYS_OUT}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content)
    return content


def _is_right(content: bytes, package: Package) -> bool:
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == package.integrity


def _npm_pack(package: Package, folder: str) -> None:
    """Fetch a package into a folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise ArtifactError(f"{package.name}: fetched with npm, which is not installed. Install npm, {WITHOUT}")
    line = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", folder]
    try:
        # In the temporary folder: settings of whatever project the user stands in don't matter.
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"{package.name}: npm did not finish in {PATIENCE_S} s. {WAYS_OUT}") from None
    if done.returncode or not (Path(folder) / package.tgz).is_file():
        said = [line for line in done.stderr.splitlines() if line.startswith("npm error")] or [
            f"exit {done.returncode}"
        ]
        raise ArtifactError(f"{package.name}: {_reason(said)}. {WAYS_OUT}")


def _reason(said: list[str]) -> str:
    """The two lines of npm's complaint that tell most: its code and what follows."""
    return ", ".join(line.removeprefix("npm error").strip().rstrip(".") for line in said[:2])
