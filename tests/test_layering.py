"""The arrows of the design: recipes -> export -> edgetl, and export/device imports nothing of ours."""

import ast
from pathlib import Path

import pytest

from export import device_app

ROOT = Path(__file__).parent.parent
OURS = ("edgetl", "recipes", "export")
ALLOWED = {
    "edgetl": {"edgetl"},
    "export": {"export", "edgetl"},
    "export/device": {"export.device"},
    "recipes": {"recipes", "export", "edgetl"},
}
MODULES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


RELATIVE = ("export/device/", *(f"edgetl/{name}" for name in device_app.SHARED))
"""What runs on devices under another name imports its neighbours by their place."""


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any depth of its code."""
    names = set()
    package = path.relative_to(ROOT).with_suffix("").parts if path.is_relative_to(ROOT) else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                assert path.relative_to(ROOT).as_posix().startswith(RELATIVE), f"{path}: relative import"
                base = ".".join((*package[: -node.level], base)).rstrip(".")
            names |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return names


def layer(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    return "export/device" if relative.startswith("export/device/") else relative.split("/")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_follow_the_arrows(path: Path) -> None:
    allowed = ALLOWED[layer(path)]
    ours = {name for name in imported(path) if name.split(".")[0] in OURS}
    wrong = {name for name in ours if not any(name == a or name.startswith(f"{a}.") for a in allowed)}
    assert not wrong, f"{path.relative_to(ROOT)} must not import {sorted(wrong)}"


def test_walk_sees_late_imports_and_would_fail_on_a_wrong_arrow(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from recipes import feature_extraction\n")
    assert "recipes.feature_extraction" in imported(bad)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_tf_keras_alias_is_never_used(path: Path) -> None:
    # What the lazy `tf.keras` means changes with an environment variable of another library.
    used = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "keras" and getattr(node.value, "id", "") == "tf"
    ]
    assert not used
