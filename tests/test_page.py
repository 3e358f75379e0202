"""The folder of a bundle's page, without a browser and without npm's packages: stand-ins take their place."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
from tiny_tflite import SIDE, mean

from edgetl.errors import ArtifactError
from edgetl.inputs import ImageInput
from edgetl.outputs import OutputSpec
from export import browser, metadata
from export.artifacts import Artifact
from export.browser import litert_js
from export.browser.litert_js import Package

STATIC = Path(browser.__file__).parent / "static"
NAMES = ("cat", "dog", "owl")
OUTPUTS = OutputSpec("classification", NAMES)


def packed(files: dict[str, bytes]) -> bytes:
    """A .tgz as npm makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


TGZ = packed({"package/dist/index.js": b"// core", "package/wasm/a.wasm": b"\0asm", "package/other.js": b"not needed"})
STAND_IN = Package(
    "@stand/in",
    "1.2.3",
    base64.b64encode(hashlib.sha512(TGZ).digest()).decode(),
    {"package/dist/index.js": "core.js", "package/wasm/a.wasm": "a.wasm"},
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, one small package to fetch, and a system without npm."""
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(litert_js, "PACKAGES", (STAND_IN,))
    return tmp_path / "cache" / "npm" / "stand-in-1.2.3.tgz"


def install_npm(tmp_path: Path, *lines: str) -> Path:
    """Install an `npm` that writes down how it was called, then runs these lines of Python; return where it wrote."""
    calls = tmp_path / "calls"
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir(exist_ok=True)
    said = f"open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:-1]) + '\\n')"
    npm.write_text("\n".join((f"#!{sys.executable} -IS", "import sys, base64", said, *lines)))
    npm.chmod(0o755)
    return calls


def delivering(content: bytes) -> str:
    return f"open(sys.argv[-1] + '/{STAND_IN.tgz}', 'wb').write(base64.b64decode({base64.b64encode(content)!r}))"


def failing(*lines: str) -> str:
    return f"sys.exit({chr(10).join(lines)!r})"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three classes, uint8."""
    about = metadata.Description("Mean int8", "Three means.", OUTPUTS, ImageInput(SIDE, SIDE), "int8", licence="MIT")
    path = tmp_path / "model.tflite"
    path.write_bytes(metadata.attach(mean("uint8", scale=0.5, zero_point=3), about))
    return path


def artifact(model: Path, input_type: str = "uint8") -> Artifact:
    content = model.read_bytes()
    return Artifact(
        scheme="int8",
        path="int8.tflite",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs=ImageInput(SIDE, SIDE, "crop"),
        input_type=input_type,
        input_scale=0.5,
        input_zero_point=3,
        outputs=OUTPUTS,
        output_type="uint8",
        output_scale=0.5,
        output_zero_point=3,
        operators=1,
        run_sha256="",
        calibration=(),
        settings={},
        versions={},
    )


def test_folder_holds_all_that_the_page_asks_for(cache: Path, model: Path, tmp_path: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(TGZ)
    folder = tmp_path / "web"
    folder.mkdir()
    browser.write(folder, artifact(model), model)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {path.name for path in STATIC.iterdir()}
    assert {"index.html", "app.js", "pixels.js", "style.css"} < own
    assert found == own | {"model.json", "int8.tflite", "litert/core.js", "litert/a.wasm", "litert/LICENSE"}
    assert (folder / "int8.tflite").read_bytes() == model.read_bytes()
    licence = (folder / "litert" / "LICENSE").read_text()
    assert "@stand/in 1.2.3" in licence and "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence
    assert json.loads((folder / "model.json").read_text()) == {
        "name": "Mean int8",
        "description": "Three means.",
        "licence": "MIT",
        "file": "int8.tflite",
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "size_bytes": model.stat().st_size,
        "inputs": {"height": SIDE, "width": SIDE, "resize": "crop", "kind": "image"},
        "input": {"type": "uint8", "scale": 0.5, "zero_point": 3},
        "output": {"type": "uint8", "scale": 0.5, "zero_point": 3},
        "outputs": {"task": "classification", "names": list(NAMES), "thresholds": [], "deviations": []},
        "runtime": litert_js.RUNTIME,
        "schema_version": 2,
    }


def test_int8_input_is_refused_before_anything_is_fetched(cache: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"^int8: browsers take float32 or uint8 inputs\. Received: int8\..*--no-web$"
    ):
        browser.write(tmp_path, artifact(model, "int8"), model)
    assert not cache.parent.exists()


def test_packages_are_fetched_once(cache: Path, tmp_path: Path) -> None:
    calls = install_npm(tmp_path, delivering(TGZ))
    litert_js.unpack(tmp_path / "first")
    litert_js.unpack(tmp_path / "second")
    assert calls.read_text() == "pack @stand/in@1.2.3 --pack-destination\n"
    assert (tmp_path / "second" / "a.wasm").read_bytes() == b"\0asm" and cache.read_bytes() == TGZ
    assert not (tmp_path / "second" / "other.js").exists()


def test_damaged_cache_is_fetched_again(cache: Path, tmp_path: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(TGZ[:-1])
    install_npm(tmp_path, delivering(TGZ))
    litert_js.unpack(tmp_path / "out")
    assert cache.read_bytes() == TGZ


@pytest.mark.parametrize(
    ("npm", "message"),
    [
        (None, r"^@stand/in: fetched with npm, which is not installed\. Install npm, or .*--no-web$"),
        (
            failing("npm error code ENOTFOUND", "npm error request to the registry failed.", "npm error 3rd line"),
            r"^@stand/in: code ENOTFOUND, request to the registry failed\. Check npm and the network .*--no-web$",
        ),
        ("sys.exit(7)", r"^@stand/in: exit 7\. Check npm"),
        ("pass", r"^@stand/in: exit 0\. Check npm"),
        (delivering(TGZ + b"\0"), r"^stand-in-1\.2\.3\.tgz: npm delivered another file than the pinned one \(sha512"),
    ],
    ids=["no npm", "offline", "fails silently", "delivers nothing", "delivers something else"],
)
def test_failing_npm_is_one_line_and_leaves_nothing(cache: Path, tmp_path: Path, npm: str | None, message: str) -> None:
    if npm is not None:
        install_npm(tmp_path, npm)
    with pytest.raises(ArtifactError, match=message) as raised:
        litert_js.unpack(tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists() and not cache.exists()


def test_npm_that_hangs_is_given_up(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_npm(tmp_path, "import time; time.sleep(60)")
    monkeypatch.setattr(litert_js, "PATIENCE_S", 0.2)
    with pytest.raises(ArtifactError, match=r"^@stand/in: npm did not finish in 0\.2 s"):
        litert_js.unpack(tmp_path / "out")


def test_pinned_packages() -> None:
    assert len({package.version for package in litert_js.PACKAGES}) == 1
    for package in litert_js.PACKAGES:
        assert len(base64.b64decode(package.integrity, validate=True)) == 64
    assert dataclasses.replace(STAND_IN, name="plain").tgz == "plain-1.2.3.tgz"


def test_page_names_no_other_host() -> None:
    for path in STATIC.iterdir():
        text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http://localhost:8000", "")
        assert not re.search(r"https?://|\bwss?://|[\"'(=]//", text), path.name


def test_policy_allows_this_folder_and_the_import_map_alone() -> None:
    html = (STATIC / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)
    import_map = re.search(r'<script type="importmap">(.*?)</script>', html, re.DOTALL)
    assert policy and import_map
    rules = {name: set(values) for name, *values in (rule.split() for rule in policy[1].split(";"))}
    digest = base64.b64encode(hashlib.sha256(import_map[1].encode()).digest()).decode()
    assert rules.pop("script-src") == {"'self'", "'wasm-unsafe-eval'", f"'sha256-{digest}'"}
    assert rules.pop("default-src") == {"'none'"}
    assert set().union(*rules.values()) == {"'self'", "'none'", "blob:"}
    targets = {target.removeprefix("./litert/") for target in json.loads(import_map[1])["imports"].values()}
    assert targets < {name for package in litert_js.PACKAGES for name in package.files.values()}
