"""The ladder stops at the first that fits, exempts as few layers as needed, and says so when nothing fits."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgetl.comparison import compare
from edgetl.config import from_json
from edgetl.errors import ArtifactError, ConfigError, DatasetError
from edgetl.outputs import OutputSpec
from edgetl.rundir import RunDir
from export import optimize
from export.artifacts import find_artifacts
from export.optimize import NOTHING_FITS, Candidate, Config, Optimization, Option, Search, pareto_front, show

TWO = OutputSpec("classification", ("bad", "good"))
LAYERS = tuple(f"layer{number}" for number in range(40))


class Rig:
    """A search whose candidates are not made: a function says how many of 1000 photos each loses."""

    def __init__(
        self,
        run: RunDir,
        monkeypatch: pytest.MonkeyPatch,
        lost: Callable[[Option], int],
        dynamic_ms: float = 2.0,
        **limits: object,
    ) -> None:
        labels = np.zeros(1000, np.int64)
        # The reference is sure of nothing: what is expected of differences is next to nothing, measured drops decide.
        right = np.tile(np.array([[0.501, 0.499]], np.float32), (1000, 1))

        def measured(search: Search, base: Candidate, option: Option, made: Option) -> Candidate:
            wrong = right.copy()
            wrong[: lost(made)] = [0.499, 0.501]
            found = compare(labels, right, wrong, TWO)
            size = {"float32": 4000, "float16": 2000, "int4_weights": 700}.get(made.scheme.name, 1000)
            size += len(made.float_layers)
            return search.judged(
                base,
                found,
                figure=1 - found.drop,
                size_bytes=size,
                latency_ms=dynamic_ms if "dynamic" in base.scheme else 2.0,
            )

        def make(search: Search, option: Option) -> Option:
            lost(option)  # may refuse
            return option

        monkeypatch.setattr(Search, "_make", make)
        monkeypatch.setattr(Search, "_measured", measured)
        monkeypatch.setattr(Search, "harmful", lambda *_: LAYERS)
        self.search = Search(run, Config(run.path, calibration_images=12, **limits))  # type: ignore[arg-type]
        self.search.climb()

    @property
    def tried(self) -> list[tuple[str, str, int, int]]:
        return [(o.scheme.name, o.ranges, o.images, len(o.float_layers)) for o in self.search.options]

    @property
    def chosen(self) -> Option:
        return self.search.options[self.search.best()]


@pytest.fixture
def rig(trained_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    return lambda lost, **limits: Rig(trained_run, monkeypatch, lost, **limits)


def test_plain_int8_is_taken_if_it_fits(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 5)
    assert found.tried == [("float32", "min-max", 0, 0), ("int8", "min-max", 0, 0)]
    assert found.search.tried[0].reference and not found.search.tried[0].fits
    assert found.chosen.scheme.name == "int8"


def test_a_lucky_candidate_does_not_fit(trained_run: RunDir) -> None:
    labels = np.tile([0, 0, 0, 1], 100)
    reference = np.tile(np.array([[0.75, 0.25]], np.float32), (400, 1))
    other = reference.copy()
    other[2:20:4], other[3:20:4] = [0.2, 0.8], [0.2, 0.8]  # five lost, five gained
    found = compare(labels, reference, other, TWO)
    assert found.drop == 0.0 and found.expected_drop == pytest.approx(10 * 0.5 / 400)
    search = Search(trained_run, Config(trained_run.path, calibration_images=12, max_accuracy_drop=0.0125))
    base = Candidate("int8", {}, "")
    assert search.judged(base, found, figure=0.75, size_bytes=1, latency_ms=1.0).misses == ("accuracy",)
    # With its standard error, 0.0039, it is within a budget of 0.0165.
    search.config = replace(search.config, max_accuracy_drop=0.0165)
    assert search.judged(base, found, figure=0.75, size_bytes=1, latency_ms=1.0).fits


def test_other_ranges_come_before_anything_dearer(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0 if option.ranges == "mse" else 50)
    assert [each[1] for each in found.tried[1:]] == ["min-max", "no-odd-photos", "percentile-99.99", "mse"]
    assert found.chosen.ranges == "mse"


@pytest.mark.parametrize("needed", [1, 2, 3, 5, 8, 13])
def test_as_few_layers_stay_in_float_as_are_needed(needed: int, rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 3 if len(option.float_layers) >= needed else 60)
    assert found.chosen.scheme.name == "mixed_int8"
    assert found.chosen.float_layers == LAYERS[:needed]
    # Doubling and halving: twice the logarithm, not one after the other.
    assert sum(1 for each in found.tried if each[0] == "mixed_int8") <= 2 * int(np.log2(needed)) + 2


def test_mixed_goes_on_from_the_best_ranges(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0 if option.float_layers else {"percentile-99.9": 30}.get(option.ranges, 60))
    assert found.chosen.ranges == "percentile-99.9" and len(found.chosen.float_layers) == 1


def test_training_comes_after_layers_and_float16_last(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0 if option.scheme.name == "float16" else 60)
    names = list(dict.fromkeys(each[0] for each in found.tried))
    assert names == ["float32", "int8", "dynamic_int8", "mixed_int8", "qat_int8", "float16"]
    # No more than half of the layers in float: the rest of the ladder is cheaper.
    assert max(each[3] for each in found.tried) == 16
    assert found.chosen.scheme.name == "float16"


@pytest.mark.parametrize("target", ["npu", "mcu"])
def test_targets_without_float_units_get_no_float(target: str, rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 60, target=target)
    assert {each[0] for each in found.tried[1:]} == {"int8", "qat_int8"}
    assert not found.search.tried[found.search.best()].fits


def test_what_is_too_large_is_not_made_more_accurate(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0, max_size_kb=0.8)
    assert [each[0] for each in found.tried] == ["float32", "int8", "float16", "int4_weights"]
    assert found.chosen.scheme.name == "int4_weights"
    tiny = rig(lambda option: 0, max_size_kb=0.1)
    assert [each.misses for each in tiny.search.tried[1:]] == [("size",)] * 3


def test_what_is_too_slow_says_so(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0, max_latency_ms=1.0)
    assert {each.misses for each in found.search.tried[1:]} == {("latency",)}
    assert [each[0] for each in found.tried] == ["float32", "int8", "dynamic_int8", "float16"]


def test_int8_weights_alone_are_no_way_out_where_they_are_slower_than_the_others(rig: Callable[..., Rig]) -> None:
    quick = rig(lambda option: 0 if option.scheme.name == "dynamic_int8" else 60)
    assert quick.chosen.scheme.name == "dynamic_int8" and len(quick.tried) == 7
    slow = rig(lambda option: 0 if option.scheme.name in ("dynamic_int8", "float16") else 60, dynamic_ms=4.0)
    assert slow.chosen.scheme.name == "float16"
    assert next(each for each in slow.search.tried if each.scheme == "dynamic_int8").misses == ("latency",)


def test_a_refused_scheme_is_kept_with_its_reason(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(option: Option) -> int:
        if option.scheme.activations == "int8":
            raise ArtifactError("these operators stay in floating point: NEG")
        return 0

    with pytest.raises(ArtifactError, match=r"npu: no form of this model fits the target\..*NEG"):
        rig(refuse, target="npu").search.best()
    found = rig(refuse)
    assert [each.refused != "" for each in found.search.tried] == [False, True, False]
    assert found.chosen.scheme.name == "dynamic_int8"


def test_few_photos_are_at_least_one_of_each_class(rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "FEW", 2)
    found = rig(lambda option: 60)
    assert [each[2] for each in found.tried if each[0] == "int8"][-1] == 3


def test_a_training_that_fails_is_one_candidate_less(rig: Callable[..., Rig]) -> None:
    def lost(option: Option) -> int:
        if option.scheme.trained:
            raise ConfigError("the loss is no longer finite")
        return 0 if option.scheme.name == "float16" else 60

    found = rig(lost)
    assert found.chosen.scheme.name == "float16"
    assert "finite" in next(each for each in found.search.tried if each.scheme == "qat_int8").refused


def test_the_command_that_makes_a_candidate_again_names_all_choices(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0 if len(option.float_layers) == 2 else 60)
    words = found.search.tried[found.search.best()].command.split()
    assert words[:3] == ["python", "-m", "export.convert"]
    assert words[words.index("--float-layers") + 1 :][:2] == list(LAYERS[:2])
    assert words[words.index("--calibration-images") + 1] == "12"
    trained = rig(lambda option: 0 if option.scheme.trained else 60, epochs=5, learning_rate=1e-3)
    words = trained.search.tried[trained.search.best()].command.split()
    assert words[words.index("--epochs") + 1] == "5" and words[words.index("--learning-rate") + 1] == "0.001"
    assert "--ranges" not in words


# --- the table ------------------------------------------------------------------------------------------------------


def candidate(name: str, top1: float, size: int, ms: float, **changes: object) -> Candidate:
    labels = np.zeros(100, np.int64)
    right = np.tile(np.float32([[1, 0]]), (100, 1))
    wrong = right.copy()
    wrong[: round(100 * (1 - top1))] = [0, 1]
    base = Candidate(name, {}, f"make {name}", size_bytes=size, latency_ms=ms, primary=top1)
    return replace(base, against_keras=compare(labels, right, wrong, TWO), **changes)  # type: ignore[arg-type]


def test_pareto_front_holds_what_nothing_beats() -> None:
    tried = (
        candidate("float32", 1.0, 400, 4.0),
        candidate("int8", 0.9, 100, 1.0),
        candidate("worse", 0.9, 120, 1.5),
        candidate("as fast within noise", 0.9, 100, 1.02),
        candidate("accurate", 0.95, 110, 1.2),
        Candidate("refused", {}, "", refused="no"),
    )
    assert pareto_front(tried) == {0, 1, 3, 4}


def report(**changes: object) -> Optimization:
    tried = (
        candidate("float32", 1.0, 4_000_000, 4.0, reference=True),
        candidate("int8", 0.9, 1_000_000, 1.0, misses=("accuracy",), settings={"ranges": "min-max"}),
        candidate("mixed_int8", 0.97, 1_100_000, 1.5, misses=("accuracy",), settings={"float_layers": "a b"}),
        Candidate("qat_int8", {}, "", refused="layer x stands in the way"),
    )
    limits = (0.01, None, None, "cpu")
    base = Optimization(
        "runs/x", "0" * 64, "1" * 64, *limits, "classification", 1.0, tried, None, 2, None, None, "some CPU", {}
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_nothing_fits_is_said_with_the_nearest_and_its_command() -> None:
    text = show(report())
    assert "nothing keeps the limits (drop at most 1.00 points; target cpu)" in text
    assert "Nearest: mixed_int8, 2 in float, which misses accuracy" in text and "make mixed_int8" in text
    assert "qat_int8: layer x stands in the way" in text
    assert max(map(len, text.splitlines())) <= 200
    rows = [line for line in text.splitlines() if line.lstrip().startswith(("float32", "int8", "mixed"))]
    assert len(rows) == 3 and all("*" in row for row in rows)


@pytest.mark.parametrize(
    ("scheme", "settings", "words"),
    [
        ("float32", {}, "float32"),
        ("int8", {"ranges": "min-max"}, "int8, min-max"),
        ("int8", {"ranges": "mse", "calibration_images": "50"}, "int8, mse, 50 photos"),
        ("mixed_int8", {"ranges": "mse", "float_layers": "a b"}, "mixed_int8, 2 in float, mse"),
        ("qat_int8", {"epochs": "3", "learning_rate": "usual"}, "qat_int8, 3 epochs, learning rate usual"),
        ("qat_int8", {"epochs": "1", "learning_rate": "0.001"}, "qat_int8, 1 epoch, learning rate 0.001"),
    ],
)
def test_a_candidate_is_named_by_what_was_chosen(scheme: str, settings: dict[str, str], words: str) -> None:
    assert optimize.named(Candidate(scheme, settings, "")) == words


def test_a_trained_candidate_is_named_by_what_its_conversion_records(rig: Callable[..., Rig]) -> None:
    found = rig(lambda option: 0 if option.scheme.trained else 60, epochs=5)
    names = [optimize.named(each) for each in found.search.tried]
    assert "qat_int8, 5 epochs, learning rate usual" in names
    assert "int8, min-max" in names


# --- a real run -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_end_to_end(tmp_path: Path, trained_run: RunDir) -> None:
    shutil.copytree(trained_run.path, tmp_path / "run")
    found = optimize.main(Config(tmp_path / "run", calibration_images=12, max_accuracy_drop=0.2))
    run = RunDir(tmp_path / "run")
    stored = from_json(Optimization, (run.export_path / optimize.OPTIMIZATION).read_bytes())
    assert stored == found and found.chosen is not None and found.test is not None
    chosen = found.candidates[found.chosen]
    (artifact,) = find_artifacts(run)
    assert (artifact.scheme, artifact.settings) == (chosen.scheme, chosen.settings)
    assert (artifact.sha256, artifact.size_bytes) == (chosen.sha256, chosen.size_bytes)
    assert found.test.samples == len(run.splits().test)
    assert chosen.against_keras is not None and chosen.against_keras.samples == len(run.splits().validation)
    text = show(found)
    assert f"chosen: {optimize.named(chosen)}" in text
    assert "test split: top-1 100.00 % (79.6 to 100.0, 15 photos)" in text
    assert all(each.latency_ms > 0 for each in found.candidates)


@pytest.mark.parametrize("budget", [-0.1, 1.0, float("nan")])
def test_a_budget_outside_the_range_is_refused(budget: float, trained_run: RunDir) -> None:
    with pytest.raises(ConfigError, match=r"--max-accuracy-drop .*at least 0 and less than 1"):
        optimize.main(Config(trained_run.path, max_accuracy_drop=budget))


@pytest.mark.parametrize("limit", ["max_size_kb", "max_latency_ms"])
def test_limits_must_be_positive(limit: str, trained_run: RunDir) -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        optimize.main(Config(trained_run.path, **{limit: 0.0}))


def test_without_a_validation_split_nothing_is_decided(trained_run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = trained_run.splits()
    empty = replace(splits, validation=splits.validation.select([]))
    monkeypatch.setattr(RunDir, "splits", lambda self, moved="": empty)
    with pytest.raises(DatasetError, match="no validation split to decide on"):
        optimize.main(Config(trained_run.path, calibration_images=12))


def test_exit_status_says_whether_something_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgetl.config import command

    done = command(lambda _: report(), Config, prog="optimize", show=show, status=optimize.status, argv=["anywhere"])
    assert done == NOTHING_FITS == 3
    assert "nothing keeps the limits" in capsys.readouterr().out


def test_json_is_plain(tmp_path: Path) -> None:
    from edgetl.config import to_json

    assert from_json(Optimization, to_json(report())) == report()
    assert json.loads(to_json(report()))["chosen"] is None
