"""The search space: what is read, what is refused, and what becomes of settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edgetl.errors import ConfigError
from edgetl.search import space
from edgetl.search.space import Knob


@dataclass(frozen=True)
class Settings:
    rate: float = 1e-3
    epochs: int = 8
    thaw: str = "0.7"
    units: tuple[int, ...] = (256,)
    head: Literal["linear", "mlp"] = "linear"
    smoothing: float | None = None
    seed: int = 0


def check(*texts: str) -> None:
    def refuse(settings: Settings) -> None:
        if settings.epochs < 1:
            raise ConfigError(f"--epochs {settings.epochs}: must be at least 1")

    space.check(space.read(texts), Settings(), refuse, barred={"seed"}, why="it divides the photos")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate=uniform(0,0.5)", Knob("rate", 0, 0.5)),
        ("rate = loguniform( 1e-6 , 1e-3 )", Knob("rate", 1e-6, 1e-3, log=True)),
        ("epochs=int(2,16)", Knob("epochs", 2, 16, whole=True)),
        ("epochs=logint(2,16,4)", Knob("epochs", 2, 16, whole=True, log=True, points=4)),
        ("head=choice(linear, mlp)", Knob("head", choices=("linear", "mlp"))),
        ("back-bone=A,B", Knob("back_bone", choices=("A", "B"))),
        ("thaw=all", Knob("thaw", choices=("all",))),
    ],
)
def test_knobs_are_read_as_they_are_written(text: str, expected: Knob) -> None:
    assert space.read([text]) == (expected,)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_says_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"space.{suffix}"
    path.write_text('{"rate": "loguniform(1e-6,1e-3)", "units": [256, [256, 128]], "epochs": 3}')
    assert space.read([str(path), "thaw=0.3,all"]) == (
        Knob("rate", 1e-6, 1e-3, log=True),
        Knob("units", choices=("256", "256|128")),
        Knob("epochs", choices=("3",)),
        Knob("thaw", choices=("0.3", "all")),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate", "not understood. Write name=form"),
        ("rate=", "nothing to choose from"),
        ("rate=choice()", "nothing to choose from"),
        ("rate=choice(1,,2)", "nothing to choose from"),
        ("rate=choice(1,1)", "a choice is there twice"),
        ("rate=normal(0,1)", "no such form. There are uniform"),
        ("rate=uniform(1)", "needs two numbers"),
        ("rate=uniform(a,b)", "needs two numbers"),
        ("rate=uniform(1,2,3,4)", "needs two numbers"),
        ("rate=uniform(2,1)", "low must be less than high"),
        ("rate=uniform(0,inf)", "low must be less than high"),
        ("rate=loguniform(0,1)", "low must be above 0 and less"),
        ("epochs=int(1,2.5)", "whole numbers are needed"),
        ("rate=uniform(0,1e38)", r"rate=uniform\(0,1e38\): bounds must be within -1e\+30 and 1e\+30"),
        ("rate=uniform(-1e308,1e308)", "bounds must be within"),
        ("rate=loguniform(1e-9,1e31)", "bounds must be within"),
        ("epochs=int(1,1e31)", "bounds must be within"),
        ("no-such-file.yaml", "no such file"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        space.read([text])
    assert text.split("=")[0] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "a mapping from knobs to forms"),
        ("", "a mapping from knobs to forms"),
        ("{", "no YAML"),
        ("rate: !!python/object/apply:os.system ['touch pwned']\n", "no YAML"),
        ("rate: {low: 1}\n", "a form or a list of choices"),
        ("1: [2]\n", "a form or a list of choices"),
        ("rate: []\n", "nothing to choose from"),
        ("rate: 2020-99-99\n", "no YAML"),
        ("rate: !!int x\n", "no YAML"),
        ("rate: [1, 2]\nrate: [3, 4]\n", "a knob is there twice"),
        ("? [1]\n: [2, 3]\n", "no YAML"),
        (f"rate: 0x{'f' * 5000}\n", "rate: Exceeds the limit"),
        ("# " + "x" * 70_000, "more than 65536 characters"),
        ("a: &a [1, 2]\nrate: [*a, [*a, *a]]\n", "a form or a list of choices"),
    ],
)
def test_files_of_strangers_are_read_as_plain_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        space.read(["space.yaml"])
    assert not Path("pwned").exists()


def test_a_knob_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate is there twice"):
        space.read(["rate=uniform(0,1)", "rate=uniform(1,2)"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raet=uniform(0,1)", r"raet: the recipe has no such setting. Did you mean rate\?"),
        ("zzz=uniform(0,1)", "There are: epochs, head"),
        ("seed=int(0,5)", "seed: can't be searched: it divides the photos"),
        ("head=choice(linear,tree)", "head: tree can't work"),
        ("epochs=int(0,5)", "epochs: 0 can't work: --epochs 0: must be at least 1"),
        ("epochs=uniform(0.5,1.5)", "epochs: 0.5 can't work"),
        ("epochs=uniform(8,64)", "epochs: 29.39.* can't work"),
        ("units=choice(a|b)", r"units: a\|b can't work"),
    ],
)
def test_knobs_must_suit_the_settings(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(text)


def test_values_become_what_the_fields_are() -> None:
    check("rate=uniform(0,1)", "units=choice(64,256|128)", "thaw=int(1,9)", "smoothing=uniform(0,0.2)")
    values = {"rate": "0.5", "units": "256|128", "thaw": 6, "smoothing": "0.1", "head": "mlp", "epochs": "4"}
    assert space.applied(Settings(), values) == Settings(0.5, 4, "6", (256, 128), "mlp", 0.1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=choice(x,y)", ("x", "y")),
        ("a=int(2,5)", (2, 3, 4, 5)),
        ("a=uniform(0,1,3)", (0, 0.5, 1)),
        ("a=loguniform(1,100,3)", (1, 10, 100)),
        ("a=logint(1,100,3)", (1, 10, 100)),
    ],
)
def test_points_of_a_grid(text: str, expected: tuple[float | str, ...]) -> None:
    (knob,) = space.read([text])
    found = knob.grid()
    if isinstance(expected[0], str):
        assert found == expected
    else:
        np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=1e-12)  # powers of floats


@pytest.mark.parametrize("form", ["uniform", "loguniform", "logint"])
def test_a_grid_needs_to_know_how_many_points(form: str) -> None:
    with pytest.raises(ConfigError, match=rf"a: a grid needs to know how many points. For 5 of them write {form}"):
        space.grid_size(space.read([f"a={form}(1,8)"]))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("a=uniform(0,1)", (0, 0.5, "1"), (1.01, -1, "x")),
        ("a=int(1,4)", (1, 4), (0, 2.5)),
        ("a=choice(256,256|128)", (256, (256,), (256, 128)), ((128,), 64)),
    ],
)
def test_a_knob_knows_which_values_it_can_have(
    text: str, inside: tuple[object, ...], outside: tuple[object, ...]
) -> None:
    (knob,) = space.read([text])
    assert all(knob.holds(value) for value in inside)
    assert not any(knob.holds(value) for value in outside)


@pytest.mark.parametrize(
    "texts",
    [
        ["a=uniform(0,1,1000000)", "b=uniform(0,1,1000000)"],
        ["a=int(1,1000000)", "b=logint(1,8,1000000)"],
        ["a=int(1,1000000000000)"],
    ],
)
def test_a_grid_beyond_all_bounds_is_refused_before_it_is_made(
    texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def grid(knob: Knob) -> None:
        pytest.fail(f"made the grid of {knob.name}")

    monkeypatch.setattr(Knob, "grid", grid)
    with pytest.raises(ConfigError, match=r"a grid of 1,000,000,000,000 points; 100,000 are the most"):
        space.grid_size(space.read(texts))


def test_the_size_of_a_grid_counts_points_that_are_one_when_rounded_once() -> None:
    assert space.grid_size(space.read(["a=logint(1,4,100)", "b=int(0,2)", "c=choice(x,y)"])) == 4 * 3 * 2
