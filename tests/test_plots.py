"""Pictures: real PNGs that show every line, the same bytes for the same numbers, and no global state."""

import io
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl import plots
from edgetl.history import Epoch
from edgetl.learning_rate import rates, suggest
from edgetl.plots import learning_rate_curve, training_curves

ROOT = Path(__file__).parent.parent


def history(*phases: tuple[str, int], probe: bool = True) -> list[Epoch]:
    rows = [Epoch("probe", 0, 0.0, 0.0, 0.5, 0.5, 0.8, 0.6, 0.75, 0.0, 0.0)] if probe else []
    for name, count in phases:
        for epoch in range(1, count + 1):
            fit = 0.5 / (len(rows) + 1)
            rows.append(Epoch(name, epoch, 1e-3 / epoch, 3e-4 / epoch, fit + 0.4, fit, 1 - fit, 0.4, 0.85, 200.0, 9.0))
    return rows


def pixels(png: bytes) -> np.ndarray:
    """[h, w, 3]"""
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG" and not set(image.info) - {"dpi"}, "no date, no version"
    return np.asarray(image.convert("RGB"))


def count(image: np.ndarray, colour: str) -> int:
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image.astype(int) - wanted).max(axis=-1) < 12).sum())


@pytest.mark.parametrize(
    "phases",
    [[], [("all", 1)], [("all", 60)], [("head", 2), ("blocks 5a to 7a", 3), ("all", 9)], [("x" * 200, 2)] * 20],
    ids=["probe", "1", "60", "three phases", "long names"],
)
def test_every_curve_is_drawn(phases: list[tuple[str, int]]) -> None:
    image = pixels(training_curves(history(*phases), "EfficientNetLite0, photos"))
    assert image.shape[1] == 11 * plots.DPI and image.shape[0] >= 6.2 * plots.DPI
    # A marker alone has some 15 pixels of its pure colour, twice (loss and accuracy, or panel and legend).
    assert all(count(image, colour) > 25 for colour in (plots.BLUE, plots.ORANGE))
    assert all((count(image, colour) > 25) == bool(phases) for colour in (plots.GREEN, plots.PURPLE))
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255).all(), "nothing is cut off at the edge"


def test_phases_are_marked_and_named() -> None:
    rows = history(("head", 2), ("all", 3))
    assert plots._runs(rows) == [("probe", 0, 0), ("head", 1, 2), ("all", 3, 5)]
    assert plots._phase_key(rows).split() == ["phases:", "1", "probe", "2", "head", "3", "all"]
    assert plots._runs(history(("all", 2), ("all", 2), probe=False)) == [("all", 1, 2), ("all", 3, 4)]
    other = history(("head", 2), ("everything", 3))
    assert training_curves(rows, "x") != training_curves(other, "x")


def test_titles_are_text_and_nothing_else() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [training_curves(history((name, 2)), name) for name in (r"a$b$ \frac{ _^", "写真", "")]
    assert len(set(found)) == 3


@pytest.mark.parametrize("kind", ["falls and explodes", "stopped early", "flat", "no number", "two decades"])
def test_range_test_curve(kind: str) -> None:
    tried = rates(1e-6, 1, 100) if kind != "two decades" else rates(1e-4, 1e-2, 20)
    x = np.log10(tried)
    losses = 2.3 - 1.5 / (1 + np.exp(-4 * (x + 3))) + np.exp(np.minimum(8 * (x + 0.7), 20))
    losses = {"flat": np.ones(100), "no number": np.full(100, np.nan), "stopped early": losses[:95]}.get(kind, losses)
    found = suggest(tried, losses)
    image = pixels(learning_rate_curve(tried, losses, found))
    assert (
        (count(image, plots.ORANGE) > 100) == (found.learning_rate is not None) == (kind not in ("flat", "no number"))
    )
    assert count(image, plots.BLUE) > 25


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes_in_many_threads() -> None:
    rows = [history(("all", n)) for n in (2, 3)] * 4
    alone = [training_curves(each, "x") for each in rows[:2]]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda each: training_curves(each, "x"), rows)) == alone * 4
    assert alone[0] != alone[1]


def test_import_is_light_and_pyplot_is_left_alone() -> None:
    program = (
        "import sys; from edgetl import plots; assert 'matplotlib' not in sys.modules\n"
        "from edgetl.history import Epoch\n"
        "plots.training_curves([Epoch('all', 1, .1, .1, .1, .1, .1, .1, .1, .1, .1)], 'x')\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one epoch"):
        training_curves([], "x")
