"""What comes from elsewhere: packages pinned by hash, weights and data with a licence and a source, no surprise calls.

Three promises. An installation takes exactly the files that the locks name. Whatever edgetl can fetch has a licence
and a source that `docs/licences.md` states. Nothing reaches for the network that was not asked to: the guard that
proves it for every test is itself tested here, and the commands of the usual way are watched in
`tests/reliability/test_no_network.py`.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

from edgetl.backbones.backbone import KerasFile, PackagedFile
from edgetl.backbones.registry import BACKBONES
from edgetl.data import sources
from export.browser import litert_js

ROOT = Path(__file__).parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LICENCES = (ROOT / "docs/licences.md").read_text()
DEPENDENCIES = [re.split(r"[\[<>=!~; ]", line)[0] for line in PROJECT["dependencies"]]
EXTRAS = [
    re.split(r"[\[<>=!~; ]", line)[0]
    for name in ("demo", "lite", "cluster", "s3", "gcs", "tfds", "mcu", "ethos-u")
    for line in PROJECT["optional-dependencies"][name]
]


def pins(lock: Path) -> dict[str, list[str]]:
    """Requirement of a lock -> its hashes."""
    found: dict[str, list[str]] = {}
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        requirement, *hashes = line.split("--hash=")
        if requirement.strip() and not requirement.startswith("#"):
            found[requirement.strip()] = [each.strip() for each in hashes]
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- packages -------------------------------------------------------------------------------------------------------


def test_all_three_locks_are_there() -> None:
    assert [lock.name for lock in LOCKS] == ["requirements-clients.lock", "requirements-old.lock", "requirements.lock"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_is_one_version_of_known_files(lock: Path) -> None:
    found = pins(lock)
    assert len(found) >= 10
    for requirement, hashes in found.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^\s*]+( ; .+)?", requirement), f"{lock.name}: {requirement}: not pinned"
        assert hashes, f"{lock.name}: {requirement}: no hash"
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), f"{lock.name}: {requirement}"
    assert not re.search(r"^\s*-(?!-hash)|://", lock.read_text(), re.M), "no other index, no file from anywhere"


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-clients.lock"])
def test_every_dependency_is_in_the_lock(lock: str) -> None:
    locked = {canonical(requirement.partition("==")[0]) for requirement in pins(ROOT / lock)}
    wanted = {canonical(name) for name in DEPENDENCIES}
    assert len(wanted) >= 20
    assert wanted <= locked, f"not in {lock}: {sorted(wanted - locked)}. Run make lock"


def test_the_makefile_installs_nothing_else() -> None:
    lines = re.split(r"\n|&&|;", (ROOT / "Makefile").read_text().replace("\\\n", " "))
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) >= 7
    for line in installs:
        ours = "--no-deps --no-build-isolation -e ." in line
        locked = "--require-hashes -r" in line and ".lock" in line
        assert ours or locked, f"installs what no lock names: {line.strip()}"


# --- licences -------------------------------------------------------------------------------------------------------


def test_all_weights_have_a_licence_and_a_source() -> None:
    for row in BACKBONES.values():
        assert row.licence, row.name
        match row.imagenet:
            case PackagedFile() as file:
                assert re.fullmatch(r"[0-9a-f]{64}", file.sha256), row.name
                assert file.distribution in LICENCES, f"docs/licences.md: nothing about {file.distribution}"
            case KerasFile() as file:
                assert file.url.startswith("https://"), row.name
        lines = [line for line in LICENCES.splitlines() if re.search(rf"\b{row.family}\b", line) and "|" in line]
        assert len(lines) == 1, f"docs/licences.md: {row.family} has {len(lines)} lines"
        assert f"| {row.licence} |" in lines[0], f"docs/licences.md: {row.family}: the registry says {row.licence}"


def test_all_named_data_sets_and_fetched_programs_have_a_licence_and_a_source() -> None:
    for name in sources.NAMED:
        (line,) = [line for line in LICENCES.splitlines() if line.startswith(f"| {name} |")]
        assert all(cell.strip() for cell in line.split("|")[2:5]), f"docs/licences.md: {name}: licence, source, use"
    for package in litert_js.PACKAGES:
        assert package.name in LICENCES, f"docs/licences.md: nothing about {package.name}"
        assert len(package.integrity) == 88, "base64 of SHA-512"


@pytest.mark.parametrize("name", [*DEPENDENCIES, *EXTRAS])
def test_every_dependency_has_a_licence(name: str) -> None:
    """Who adds one has to look at its licence: a line is missing, or the package says another."""
    lines = [line for line in LICENCES.splitlines() if line.startswith(f"| {name} |")]
    assert len(lines) == 1, f"docs/licences.md: no line about {name}"
    stated = lines[0].split("|")[2].strip()
    assert stated
    try:
        found = metadata(name)
    except PackageNotFoundError:
        assert name in EXTRAS, f"{name} is not installed"
        return
    says = [found.get("License-Expression") or "", (found.get("License") or "").split("\n")[0]]
    says += [each.rpartition(" :: ")[2] for each in found.get_all("Classifier") or [] if "License" in each]
    key = re.split(r"[- ]", stated)[0]
    silent = not any(say and say != "UNKNOWN" for say in says)  # the weights: their repository says it
    assert silent or key.lower() in " ".join(says).lower(), f"{name}: the table says {stated}, the package {says}"


# --- the network ----------------------------------------------------------------------------------------------------

MAY_CALL = {
    "edgetl/backbones/registry.py": "names of files, joined to URLs",
    "edgetl/backbones/weights.py": "weights of the backbone that was named, if they are not there",
    "edgetl/data/remote.py": "data by URL",
    "edgetl/parallel.py": "a cluster, with --ray",
}
NETWORK = {"urllib", "http", "socket", "ssl", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "fsspec", "asyncio"}


def test_few_modules_know_the_network() -> None:
    """A new one has to say here what it is for."""
    found = set()
    for package in ("edgetl", "recipes", "export"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                if {name.split(".")[0] for name in names} & NETWORK:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == set(MAY_CALL)


REACHING = """\
import asyncio, os, socket, subprocess, sys, urllib.request
import pytest

CHILD = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('192.0.2.1', 80))"
FAR = ("192.0.2.1", 80)  # RFC 5737: for documentation, nobody's


def test_connect():
    with pytest.raises(ConnectionRefusedError):
        socket.socket().connect(FAR)

def test_create_connection():
    with pytest.raises(socket.gaierror):
        socket.create_connection(FAR, 1)

def test_connect_ex():
    with pytest.raises(ConnectionRefusedError):
        socket.socket().connect_ex(FAR)

def test_datagram():
    with pytest.raises(ConnectionRefusedError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", FAR)

def test_name():
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.invalid", 80)

def test_swallowed():
    try:
        urllib.request.urlopen("http://example.invalid/", timeout=1)
    except OSError:
        pass

def test_asyncio():
    async def reach():
        await asyncio.open_connection(*FAR)
    with pytest.raises(OSError):
        asyncio.run(reach())

def test_child():
    subprocess.run([sys.executable, "-c", CHILD], stderr=subprocess.DEVNULL)

def test_grandchild():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], stderr=subprocess.DEVNULL)"
    subprocess.run([sys.executable, "-c", code, CHILD])

@pytest.fixture(scope="module")
def reached():
    subprocess.run([sys.executable, "-c", CHILD], stderr=subprocess.DEVNULL)

def test_fixture(reached):
    pass

def test_local_is_allowed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 5).close()
        socket.create_connection(("localhost", server.getsockname()[1]), 5).close()
        here = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)"
        subprocess.run([sys.executable, "-c", here, str(server.getsockname()[1])], check=True)
"""


def test_the_guard_fails_every_test_that_reaches_for_the_network(tmp_path: Path) -> None:
    (tmp_path / "test_reaching.py").write_text(REACHING)
    # As if it lay in tests/: the same conftest, nothing else of this project.
    paths = [str(ROOT / "tests"), str(ROOT), os.environ["PYTHONPATH"]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rA", "-q", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        check=False,
    )
    reached = r"^ERROR \S+::test_(\w+) - AssertionError: the test reached for the network"
    caught = set(re.findall(reached, done.stdout, re.M))
    names = set(re.findall(r"def test_(\w+)", REACHING))
    assert names - caught == {"local_is_allowed"}, done.stdout[-3000:] + done.stderr
    assert len(re.findall(r"^PASSED", done.stdout, re.M)) == len(names), "what they expected came: a refusal"
