"""Which interpreter is chosen, and what device code may import and which Python it may need."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from export.device import host, runtime
from export.device.errors import DeviceError

FOLDER = Path(runtime.__file__).parent
MODULES = sorted(FOLDER.glob("*.py"))
OUTSIDE = {"numpy"}
"""Beside the standard library; the interpreter comes by importlib."""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    runtime.find_runtime.cache_clear()
    yield
    runtime.find_runtime.cache_clear()


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    real = runtime.importlib.import_module

    def find(name: str, *package: str) -> ModuleType:
        if name.split(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return real(name, *package)

    monkeypatch.setattr(runtime.importlib, "import_module", find)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("tflite_runtime.interpreter")
    module.Interpreter, module.OpResolverType = object, SimpleNamespace()
    package = ModuleType("tflite_runtime")
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", module)


def test_ai_edge_litert_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert runtime.find_runtime().name.startswith("ai-edge-litert 2.")


def test_tflite_runtime_comes_second(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    absent(monkeypatch, "ai_edge_litert")
    assert runtime.find_runtime().name.startswith("tflite-runtime ")


def test_tensorflow_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "ai_edge_litert", "tflite_runtime")
    found = runtime.find_runtime()
    assert found.name.startswith("tensorflow 2.")
    assert found.resolvers.BUILTIN_REF.name == "BUILTIN_REF"


@pytest.mark.parametrize(
    ("machine", "install"),
    [("aarch64", "pip install ai-edge-litert"), ("armv7l", "pip install tflite-runtime 'numpy<2'")],
)
def test_no_interpreter_at_all(machine: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.platform, "machine", lambda: machine)
    absent(monkeypatch, "ai_edge_litert", "tflite_runtime", "tensorflow")
    with pytest.raises(DeviceError) as caught:
        runtime.find_runtime()
    assert install in str(caught.value)
    assert "(" not in str(caught.value).split("Install")[0], "what is merely absent needs no reason"


def test_an_interpreter_that_is_broken_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> ModuleType:
        if name.startswith("ai_edge"):
            raise ImportError("libc.so.6: version `GLIBC_2.38' not found\nsecond line")
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

    monkeypatch.setattr(runtime.importlib, "import_module", find)
    with pytest.raises(DeviceError, match=r"ai-edge-litert: libc.so.6: version `GLIBC_2.38' not found second line"):
        runtime.find_runtime()


def test_host_is_described() -> None:
    found = host.describe_host()
    assert found.cores >= 1
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.cpu
    assert found.system


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_syntax_is_that_of_python_3_9(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    # feature_version lets `match` through no more, but a union of types at run time is not syntax.
    assert not [node for node in ast.walk(tree) if type(node).__name__ == "Match"]
    if any(isinstance(node, ast.FunctionDef | ast.AnnAssign) for node in ast.walk(tree)):
        assert "from __future__ import annotations" in path.read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_imports_are_standard_numpy_or_from_this_folder(path: Path) -> None:
    siblings = {module.stem for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert names <= set(sys.stdlib_module_names) | OUTSIDE
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{path.name}: imports from outside the folder"
            assert (node.module or "").split(".")[0] in siblings
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] in set(sys.stdlib_module_names) | OUTSIDE
