"""What an edgetl of before has written stays useful: a run of each released schema is kept, and used today.

`tests/golden/` holds them, made by `tests/golden/make.py` and never again. Today's code opens the run, finds its
photos elsewhere, converts, evaluates, reports and bundles it, and gets the stored figures; the device program of then
still passes its own check. A file of an older or a newer schema is refused in one line that says which.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgetl.rundir import Manifest, RunDir, open_run, read_json
from export import benchmark, bundle, convert, evaluate, layers, report
from export.artifacts import find_artifacts
from export.device.contents import Bundle
from export.evaluate import EvaluationReport
from tests.test_commands import run as invoke

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent.parent / "golden"
RELEASED = sorted(GOLDEN.glob("schema*"))
ONE_STEP = 1 / 255
"""Of an int8 artifact's scores: another release of the runtime may round another way."""


@pytest.fixture(params=RELEASED, ids=lambda path: path.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    """A copy that may be changed."""
    shutil.copytree(request.param / "run", tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def photos(golden: RunDir) -> str:
    """Where its photos are now."""
    return str(GOLDEN / f"schema{golden.manifest.schema_version}" / "photos")


def evaluation(run: RunDir) -> EvaluationReport:
    return read_json(EvaluationReport, run.export_path / "evaluation.json")


def figures(run: RunDir) -> dict[str, float]:
    found = evaluation(run)
    return {"keras": found.keras.primary} | {each.scheme: each.scores.primary for each in found.artifacts}


def said(run: RunDir) -> dict[str, np.ndarray]:
    with np.load(run.export_path / "predictions.npz") as kept:
        return {name: kept[name] for name in kept.files}


def test_there_is_a_run_of_the_schema_of_today() -> None:
    assert f"schema{Manifest.schema_version}" in [path.name for path in RELEASED]
    size = sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file())
    assert size < 3_000_000 * len(RELEASED), "they are in everybody's checkout"


def test_it_opens_and_its_model_says_what_it_said(golden: RunDir, photos: str) -> None:
    run = open_run(golden.path)
    splits = run.splits(photos)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [21, 6, 9]
    assert run.output_names == ("cat", "dog", "owl")
    before, kept = figures(run), said(run)
    assert set(before) == {"keras", "float32", "int8"}
    evaluate.main(evaluate.Config(run.path, data=photos))
    now = said(run)
    assert figures(run) == before
    assert now["ids"].tolist() == kept["ids"].tolist()
    # Sums in another order: rounding of float32 over a few hundred additions.
    np.testing.assert_allclose(now["keras"], kept["keras"], atol=1e-5)
    np.testing.assert_allclose(now["float32"], kept["float32"], atol=1e-5)
    np.testing.assert_allclose(now["int8"], kept["int8"], atol=ONE_STEP)


def test_it_is_converted_again_to_the_same_figures(golden: RunDir, photos: str) -> None:
    before, kept = figures(golden), said(golden)
    (golden.export_path / "evaluation.json").unlink()
    convert.main(convert.Config(golden.path, schemes=("float32", "int8"), calibration_images=12, data=photos))
    evaluate.main(evaluate.Config(golden.path, data=photos))
    assert figures(golden) == before
    np.testing.assert_allclose(said(golden)["float32"], kept["float32"], atol=1e-5)
    np.testing.assert_allclose(said(golden)["int8"], kept["int8"], atol=ONE_STEP)


def test_the_rest_of_the_way_works(golden: RunDir, photos: str) -> None:
    shown = report.show(report.main(report.Config(golden.path)))
    assert all(scheme in shown for scheme in ("float32", "int8"))
    benchmark.main(benchmark.Config(golden.path, runs=5, warmup=1))
    layers.main(layers.Config(golden.path, images=4, data=photos))
    again = bundle.main(bundle.Config(golden.path, photos=4, web=False, data=photos))
    assert again.bundle.sha256 == find_artifacts(golden, ("int8",))[0].sha256
    assert again.bundle.schema_version == Bundle.schema_version


@pytest.mark.parametrize("command", ["info", "check", "benchmark"])
def test_its_device_program_still_runs(command: str, golden: RunDir) -> None:
    folder = golden.path / "bundles/int8"
    few = ["--runs", "3"] if command == "benchmark" else []
    done = subprocess.run(
        [sys.executable, folder / "edgetl-device.pyz", command, *few], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout


# --- other schemas --------------------------------------------------------------------------------------------------

READERS: dict[str, tuple[str, ...]] = {
    "manifest.json": ("convert", "evaluate", "report", "layers", "bundle"),
    "export/evaluation.json": ("report", "bundle"),
    "export/int8.json": ("evaluate", "report", "bundle", "layers"),
    "export/int8.latency.json": ("report", "bundle"),
    "bundles/int8/bundle.json": ("edgetl-device.pyz",),
}
AGES: dict[str, Callable[[dict[str, object]], dict[str, object]]] = {
    "older": lambda found: found | {"schema_version": found["schema_version"] - 1},  # type: ignore[operator]
    "newer": lambda found: found | {"schema_version": found["schema_version"] + 1},  # type: ignore[operator]
    "newer, with more in it": lambda found: found | {"schema_version": 99, "invented": 1},
    "older, with less in it": lambda found: {"schema_version": 0},
}
"""What a file of another version looks like."""


@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize(("name", "reader"), [(name, reader) for name, all_ in READERS.items() for reader in all_])
def test_another_schema_is_refused_in_one_line(
    age: str, name: str, reader: str, golden: RunDir, photos: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = golden.path / name
    found = json.loads(path.read_bytes())
    changed = AGES[age](found)
    path.write_text(json.dumps(changed))
    if reader == "edgetl-device.pyz":
        words = ["info", "--bundle", path.parent]
    else:
        words = [golden.path, *(["--data", photos] if reader in ("convert", "evaluate", "layers", "bundle") else [])]
    assert invoke(reader, *words, "--quiet") == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1, err
    assert path.name in err and f"schema_version {changed['schema_version']}" in err
    assert f"reads {found['schema_version']}" in err
    if path.name != "bundle.json":  # a bundle and its program travel together
        assert ("newer edgetl" in err) == age.startswith("newer"), err
