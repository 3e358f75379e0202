"""The search on real photos in real processes: the same trials however it ran, and no test photo looked at."""

import csv
import dataclasses
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from photos import make_photo_folder

from benchmarks.local_cluster import local_cluster
from edgetl import data, rundir
from edgetl.errors import (
    ArtifactError,
    BackboneError,
    CacheError,
    ConfigError,
    DatasetError,
    DiskSpaceError,
    EdgetlError,
    RunError,
    WeightsError,
)
from edgetl.metrics import score
from edgetl.search.outcome import Outcome
from edgetl.search.space import applied
from recipes import experiment, feature_extraction, search
from recipes.searching import explore, trials
from recipes.searching.explore import explored
from recipes.searching.judge import Repeats, Search, excluded, gain_of, refuse_none
from recipes.searching.planning import base_settings, default_space, planned
from recipes.searching.trials import RECIPES
from tests import clusters

SPACE = ("learning_rate=loguniform(1e-4,1e-2)", "dropout=uniform(0,0.5)", "hidden_units=choice(8,16)")


def settings(photos: Path, out: Path, **changes: object) -> search.Config:
    usual = search.Config(
        str(photos),
        out,
        backbone="MobileNet_025",
        weights="none",
        image_size=32,
        method="random",
        trials=6,
        space=SPACE,
        fixed=("head=mlp", "epochs=12"),
        processes=2,
        repeats=0,
    )
    return dataclasses.replace(usual, **changes)


def timeless(outcomes: tuple[Outcome, ...]) -> list[Outcome]:
    return [dataclasses.replace(each, seconds=0.0) for each in outcomes]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photo_folder(tmp_path_factory.mktemp("data") / "photos", {"cat": 24, "dog": 24}, size=(32, 32))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Search:
    return search.main(settings(photos, tmp_path_factory.mktemp("searches") / "one", method="tpe", repeats=2))


def copied(found: Search, tmp_path: Path) -> Path:
    shutil.copytree(found.path, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_search_leaves_a_model_a_table_a_picture_and_a_study(found: Search) -> None:
    out = Path(found.path)
    assert len(found.outcomes) == 6
    assert {each.state for each in found.outcomes} <= {"complete", "pruned"}
    run = rundir.open_run(found.run)  # checks every hash
    assert run.splits().test.labels.size
    rows = list(csv.DictReader((out / search.TABLE).open()))
    assert [float(row["accuracy"]) for row in rows] == [each.figures["accuracy"] for each in found.outcomes]
    assert (out / search.PICTURE).read_bytes().startswith(b"\x89PNG")
    study = optuna.load_study(study_name="edgetl", storage=f"sqlite:///{out / 'study.db'}")
    assert [trial.params for trial in study.trials] == [each.params for each in found.outcomes]
    assert not list((out / "trials").glob("*/"))  # checkpoints have had their day
    assert search.main(settings(Path(found.data), out, method="tpe", repeats=2)) == found  # nothing is done again


def test_the_best_trials_model_is_what_the_recipe_makes_of_its_settings(found: Search) -> None:
    (best,) = found.best
    metrics = rundir.read_json(feature_extraction.Metrics, Path(found.run) / rundir.METRICS)
    outcome = found.outcomes[best]
    # The run has all threads, a trial one: sums of floats in another order.
    assert metrics.validation.primary == pytest.approx(outcome.figures["accuracy"], abs=1 / metrics.validation.samples)
    assert outcome.figures["accuracy"] == max(e.figures["accuracy"] for e in found.outcomes if e.state == "complete")
    config = json.loads((Path(found.run) / rundir.CONFIG).read_text())
    assert config["learning_rate"] == outcome.params["learning_rate"]
    assert (config["head"], config["epochs"]) == ("mlp", 12)
    assert found.commands[best].startswith("python -m recipes.feature_extraction --data ")


def test_the_first_trial_is_the_defaults(photos: Path, tmp_path: Path) -> None:
    config = search.Config(str(photos), tmp_path / "out")
    base = base_settings(config)
    plan = planned(config, base)
    usual = feature_extraction.Config("d", Path("o"))
    assert plan.first is not None
    assert applied(base, plan.first) == base
    assert plan.first["learning_rate"] == usual.learning_rate


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"space": ("dropout=uniform(0,0.5)",)}, True),
        ({"space": ("dropout=uniform(0,0.5)", "hidden_units=choice(8,16)"), "fixed": ("head=linear",)}, True),
        ({"space": (), "fixed": ("head=linear",)}, True),
        ({"space": ("dropout=uniform(0,0.5)",), "fixed": ("head=mlp",)}, False),
        ({"space": ("dropout=uniform(0,0.5)", "head=choice(linear,mlp)")}, False),
        ({"space": ("dropout=uniform(0,0.5)", "image_size=choice(32,64)")}, False),
        ({"space": ("dropout=uniform(0,0.5)",), "recipe": "fine_tune"}, False),
        ({"space": ()}, False),
    ],
)
def test_knobs_of_layers_that_are_not_there_are_refused(
    photos: Path, tmp_path: Path, changes: dict[str, object], refused: bool
) -> None:
    config = settings(photos, tmp_path / "out", **({"fixed": ()} | changes))
    if refused:
        with pytest.raises(ConfigError, match=r"all trials would be the same.* add --fixed head=mlp"):
            planned(config, base_settings(config))
    else:
        assert planned(config, base_settings(config)).knobs


def test_settings_of_hidden_layers_are_all_that_a_linear_head_has_not() -> None:
    own = {each.name for each in dataclasses.fields(feature_extraction.Config)}
    shared = {each.name for each in dataclasses.fields(experiment.Experiment)}
    recipe = RECIPES["feature_extraction"]
    assert recipe.of_mlp == own - shared - recipe.barred - {"head"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_default_space_holds_the_defaults(recipe: str, photos: Path, tmp_path: Path) -> None:
    config = search.Config(str(photos), tmp_path / "out", recipe=recipe, max_latency_ms=10.0)
    base = base_settings(config)
    knobs = default_space(config, base)
    assert {"backbone", "image_size"} <= {knob.name for knob in knobs}  # what costs time varies where time is limited
    narrow = dataclasses.replace(config, weights="none", backbone="MobileNetV2")
    own = base_settings(narrow)
    (width,) = (knob for knob in default_space(narrow, own) if knob.name == "width")
    assert {"0.35", "1.0"} <= set(width.choices) and width.holds(own.width)
    assert planned(config, base).first
    fewer = default_space(dataclasses.replace(config, fixed=("batch_size=8",)), base)
    assert {knob.name for knob in knobs} - {knob.name for knob in fewer} == {"batch_size"}


def test_repeats_compare_with_the_defaults_on_photos_that_chose_nothing(found: Search) -> None:
    if found.repeats is None:
        assert found.best[0] == found.defaults
        return
    assert len(found.repeats.best) == len(found.repeats.defaults) == 2
    expected = gain_of(found.repeats.best, found.repeats.defaults, 0.15 / 0.75)
    assert (found.repeats.gain, found.repeats.low, found.repeats.high) == pytest.approx(expected, abs=0.02)
    assert "other divisions the best settings are" in search.show(found)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"max_latency_ms": 3.0}, ["latencies are noisy: a fan"]),
        ({"objectives": ("latency_ms",)}, ["latencies are noisy: a fan"]),
        ({"max_size_kb": 3.0}, []),
        ({"objectives": ("accuracy", "size_kb")}, []),
    ],
)
def test_noise_of_latencies_is_told_where_they_count(
    photos: Path, tmp_path: Path, changes: dict[str, object], told: list[str]
) -> None:
    config = settings(photos, tmp_path / "out", **changes)
    base = base_settings(config)
    shared = SimpleNamespace(
        plan=SimpleNamespace(first=None),
        examples=SimpleNamespace(task="classification"),
        table=SimpleNamespace(data_sha256=""),
    )
    outcomes = [Outcome(0, {"dropout": 0.1}, "complete", "photos")]
    study = SimpleNamespace(outcomes=outcomes, best=lambda: outcomes, importance=dict)
    shapes = SimpleNamespace(noise=["a fan"], devices="here")
    result = search.summed_up(config, base, shared, study, None, "", None, shapes, rundir.RunDir(tmp_path))
    assert list(result.notes) == told


LIMITS = {"latency_ms": 3.0, "size_kb": 1000.0}


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"latency_ms": 3.0, "size_kb": 999.0}, ""),
        ({"latency_ms": 3.5, "size_kb": 999.0}, "the defaults exceed --max-latency-ms 3: 3.5 ms"),
        (
            {"latency_ms": 9.0, "size_kb": 2412.0},
            "the defaults exceed --max-latency-ms 3 --max-size-kb 1000: 9 ms, 2412 kB",
        ),
        ({}, "the defaults have no int8 form"),
    ],
)
def test_defaults_that_the_device_cannot_take_are_no_choice(figures: dict[str, float], told: str) -> None:
    assert excluded(figures, LIMITS) == told


def costing(number: int, latency_ms: float, size_kb: float, failed: str = "") -> Outcome:
    figures = {"latency_ms": latency_ms, "size_kb": size_kb}
    excess = {name: figures[name] / limit - 1 for name, limit in LIMITS.items()}
    state = "failed" if failed else "infeasible"
    return Outcome(number, {"width": str(number)}, state, "photos", figures, excess=excess, remark=failed)


BOTH = "all of --max-latency-ms 3 --max-size-kb 1000"


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        (
            [costing(0, 9, 500), costing(1, 1, 5000)],
            f"none of 2 trials keeps {BOTH}; the nearest, trial 0: 9 ms, 500 kB (width=0)",
        ),
        (
            [costing(0, 1, 500, failed="training diverged"), costing(1, 4, 1200)],
            f"{BOTH}: kept by 1 of 2 trials, but none could be trained (training diverged); the nearest of the others, "
            "trial 1: 4 ms, 1200 kB (width=1)",
        ),
        (
            [costing(0, 4, 1200), costing(1, 1, 5000, failed="training diverged")],  # keeps one of the two
            f"none of 2 trials keeps {BOTH}; the nearest, trial 0: 4 ms, 1200 kB (width=0)",
        ),
        (
            [costing(0, 1, 500, failed="training diverged"), costing(1, 1, 400, failed="no")],
            "none of 2 trials could be completed: training diverged",
        ),
    ],
)
def test_which_limits_nothing_keeps_and_what_comes_nearest(outcomes: list[Outcome], told: str) -> None:
    study = SimpleNamespace(outcomes=outcomes, best=list)
    with pytest.raises(ConfigError) as error:
        refuse_none(study, LIMITS)
    assert str(error.value).startswith(told)


def test_one_limit_is_told_alone() -> None:
    study = SimpleNamespace(outcomes=[costing(0, 9, 500)], best=list)
    with pytest.raises(ConfigError, match=r"^none of 1 trials keeps --max-latency-ms 3; the nearest, trial 0: 9 ms \("):
        refuse_none(study, {"latency_ms": 3.0})


@pytest.mark.parametrize(
    ("changes", "size_kb", "told"),
    [
        ({"max_size_kb": 1500.0}, 2412.0, "the defaults exceed --max-size-kb 1500: 2412 kB"),
        ({"objectives": ("size_kb",)}, 1.0, ""),
        ({"objectives": ("accuracy", "size_kb")}, 1.0, ""),
        ({"max_size_kb": 1500.0}, 1.0, "points of top-1 from the defaults .*; the defaults do as well"),
        ({"objectives": ("int8_accuracy",)}, 1.0, "points of top-1 of the Keras models from the defaults"),
    ],
)
def test_the_defaults_are_advised_only_where_they_are_a_choice(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, object],
    size_kb: float,
    told: str,
) -> None:
    config = settings(photos, tmp_path / "out", repeats=2, **changes)
    shared = SimpleNamespace(
        base=None, plan=SimpleNamespace(first=None), examples=SimpleNamespace(task="classification")
    )
    shapes = SimpleNamespace(figures=lambda settings: {"size_kb": size_kb})
    made = Repeats((1, 2), (0.5, 0.6), (0.6, 0.5), *gain_of((0.5, 0.6), (0.6, 0.5), 0.2))
    monkeypatch.setattr(search, "repeated", lambda *_, **__: made)
    best = Outcome(1, {}, "complete", "photos")
    repeats, said = search.compared(config, None, shared, shapes, [best])
    assert re.search(told, said) if told else said == ""
    assert (repeats is made) == ("points of" in told)


@pytest.mark.slow
def test_lost_trials_are_done_again_to_the_same_outcomes(found: Search, tmp_path: Path) -> None:
    copy = copied(found, tmp_path)
    for name in ("0001.json", "0004.json", "0005.json"):
        (copy / "trials" / name).unlink()
    (copy / "trials" / "0003.json").write_bytes(b"{")
    (copy / "study.db").unlink()
    again = search.main(settings(Path(found.data), copy, method="tpe", repeats=2))
    assert timeless(again.outcomes) == timeless(found.outcomes)
    assert again.best == found.best


@pytest.mark.slow
def test_more_trials_go_on_from_those_that_are_there(found: Search, tmp_path: Path) -> None:
    copy = copied(found, tmp_path)
    more = search.main(settings(Path(found.data), copy, method="tpe", trials=8, repeats=0))
    assert more.outcomes[:6] == found.outcomes
    assert len(more.outcomes) == 8


def test_a_study_of_other_photos_is_refused(found: Search, tmp_path: Path) -> None:
    copy = copied(found, tmp_path)
    other = make_photo_folder(tmp_path / "photos", {"cat": 24, "dog": 24}, size=(32, 32), seed=1)
    with pytest.raises(RunError, match=r"other settings .*data: "):
        search.main(settings(other, copy, method="tpe"))
    changed = shutil.copytree(found.data, tmp_path / "same")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"data": str(changed)}))
    make_photo_folder(changed, {"cat": 1}, size=(32, 32), seed=7)  # in place of the first cat
    with pytest.raises(RunError, match=r"a search of other photos, labels, groups or splits \(trial 0\)"):
        search.main(settings(changed, copy, method="tpe"))


def test_no_trial_sees_a_test_photo(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = shared_by(settings(photos, tmp_path / "out"))
    assert len(shared.held_out) == 12
    scored: list[set[str]] = []
    finish = experiment.finish

    def watched(model: object, parts: data.Splits, *arguments: object, **options: object) -> object:
        scored.append({item.id for item in parts.train} | {item.id for item in parts.validation})
        assert not len(parts.test)
        return finish(model, parts, *arguments, **options)

    monkeypatch.setattr(experiment, "finish", watched)
    params = {"learning_rate": 1e-3, "dropout": 0.1, "hidden_units": "8"}
    trials.run_trial(shared, 0, params, [], {}, {})
    trials.run_repeat(shared, "defaults", params, seed=5)
    assert len(scored) == 2 and scored[0] == scored[1]  # another division, of the same photos
    assert not shared.held_out & scored[0]


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 3])
def test_a_search_that_was_killed_goes_on_to_the_same_trials(photos: Path, tmp_path: Path, moment: int) -> None:
    whole = search.main(settings(photos, tmp_path / "whole"))
    config = settings(photos, tmp_path / "killed")
    words = ["--data", str(photos), "--out", str(config.out), "--backbone", config.backbone, "--weights", "none"]
    words += ["--image-size", "32", "--method", "random", "--trials", "6", "--processes", "2", "--repeats", "0"]
    words += ["--space", *SPACE, "--fixed", *config.fixed]
    process = subprocess.Popen([sys.executable, "-m", "recipes.search", *words], cwd=Path(__file__).parent.parent)
    while len(list((config.out / "trials").glob("*.json"))) < moment and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)  # its workers end when they see that it is gone
    done = len(list((config.out / "trials").glob("*.json")))
    assert done < 6
    resumed = search.main(config)
    assert timeless(resumed.outcomes) == timeless(whole.outcomes)
    assert resumed.best == whole.best


@pytest.mark.slow
def test_fine_tuning_is_searched_and_hopeless_trials_are_stopped(photos: Path, tmp_path: Path) -> None:
    config = settings(
        photos,
        tmp_path / "out",
        recipe="fine_tune",
        backbone="EfficientNetLite0",  # pretrained: what a high rate can spoil is there
        weights="imagenet",
        space=("backbone_lr=loguniform(1e-6,1)", "thaw=choice(1,2)"),
        fixed=("epochs=3", "views=1", "augment=none"),
        trials=9,
        ahead=2,
        method="hyperband",
    )
    found = search.main(config)
    assert any(each.state == "pruned" for each in found.outcomes)
    assert all(len(each.curve) == 3 for each in found.outcomes if each.state == "complete")
    assert rundir.open_run(found.run).manifest.recipe == "fine_tune"
    metrics = json.loads((Path(found.run) / rundir.METRICS).read_text())
    assert metrics["validation"]["top1"] == pytest.approx(found.outcomes[found.best[0]].figures["accuracy"], abs=0.15)


def divided_table(photos: Path, folder: Path, parts: tuple[str, ...]) -> Path:
    """A table of all photos, copied beside it, that divides them."""
    shutil.copytree(photos, folder / "photos", dirs_exist_ok=True)
    names = sorted(path.relative_to(folder) for path in (folder / "photos").rglob("*.jpg"))
    rows = [f"{name},{name.parent.name},{parts[number % len(parts)]}" for number, name in enumerate(names)]
    (folder / "photos.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    return folder / "photos.csv"


def shared_by(config: search.Config) -> trials.Shared:
    """What the trials of a search have in common."""
    base = base_settings(config)
    with rundir.writing(config.out, search.RECIPE, config) as run:
        return search.prepared(config, base, planned(config, base), experiment.load_examples(base), run)[0]


@pytest.mark.slow
def test_a_space_that_was_edited_is_refused_and_the_default_one_is_kept(found: Search, tmp_path: Path) -> None:
    copy = copied(found, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    other = (*SPACE[:2], "hidden_units=choice(8,16,32)")
    (copy / "config.json").write_text(json.dumps(config | {"space": other}))
    with pytest.raises(RunError, match=r"began with another --space \(.*space.json\)"):
        search.main(settings(Path(found.data), copy, method="tpe", space=other))
    (copy / "config.json").write_text(json.dumps(config | {"space": []}))  # as if it had been the default of then
    again = search.main(settings(Path(found.data), copy, method="tpe", space=(), repeats=2))
    assert timeless(again.outcomes) == timeless(found.outcomes)


@pytest.mark.slow
def test_photos_that_changed_sides_are_refused(photos: Path, tmp_path: Path) -> None:
    config = settings(
        divided_table(photos, tmp_path, ("train", "train", "validation", "test")), tmp_path / "out", trials=1
    )
    search.main(config)
    divided_table(photos, tmp_path, ("train", "train", "test", "validation"))
    with pytest.raises(RunError, match=r"a search of other photos, labels, groups or splits"):
        search.main(config)


@pytest.mark.slow
def test_repeats_divide_anew_what_the_data_divides_itself(photos: Path, tmp_path: Path) -> None:
    table = divided_table(photos, tmp_path, ("train", "train", "validation", "test"))
    shared = shared_by(settings(table, tmp_path / "out"))
    validated: list[frozenset[str]] = []
    train = trials.train_head

    def watched(shared: trials.Shared, config: feature_extraction.Config, report: object) -> object:
        done, splits = train(shared, config, report)  # type: ignore[arg-type]
        validated.append(frozenset(item.id for item in splits.validation))
        return done, splits

    with pytest.MonkeyPatch.context() as patch:
        recipe = dataclasses.replace(trials.RECIPES["feature_extraction"], train=watched)
        patch.setitem(trials.RECIPES, "feature_extraction", recipe)
        for seed in (1, 2):
            trials.run_repeat(shared, "defaults", {}, seed)
    assert len(set(validated)) == 2
    assert {len(each) for each in validated} == {12}  # as many as the data's own
    assert not any(each & shared.held_out for each in validated)


def test_a_training_that_diverges_fails_its_trial_alone(photos: Path, tmp_path: Path) -> None:
    shared = shared_by(settings(photos, tmp_path / "out"))
    outcome = trials.run_trial(shared, 0, {"learning_rate": 1e37, "dropout": 0.1, "hidden_units": "8"}, [], {}, {})
    assert outcome.state == "failed"
    assert "diverged" in outcome.remark


class Here:
    """A pool that does its tasks in this process when their results are asked for."""

    def __init__(self, shared: object, **_: object) -> None:
        self._shared, self._tasks = shared, deque[tuple[object, ...]]()

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, *task: object) -> None:
        self._tasks.append(task)

    def finished(self) -> tuple[int, Outcome]:
        tag, function, *arguments = self._tasks.popleft()
        return tag, function(self._shared, *arguments)

    @property
    def running(self) -> int:
        return len(self._tasks)


def trained_as(
    train: Callable[..., object], photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[rundir.RunDir, trials.Shared]:
    """What trials share, whose trainings are `train`, in this process."""
    recipe = dataclasses.replace(RECIPES["feature_extraction"], train=train)
    monkeypatch.setitem(RECIPES, "feature_extraction", recipe)
    monkeypatch.setattr(explore, "workers", Here)
    config = settings(photos, out)
    base = base_settings(config)
    examples = SimpleNamespace(task="classification")
    shared = trials.Shared(config.recipe, base, examples, planned(config, base), "", None, frozenset(), 0.2, out)
    out.mkdir()
    return rundir.RunDir(out), shared


def good(*_: object) -> object:
    """A training."""
    return SimpleNamespace(validation=SimpleNamespace(primary=0.9)), None


PASSING = [CacheError, DatasetError, DiskSpaceError, RunError, WeightsError]


@pytest.mark.parametrize("error", [CacheError, *(pytest.param(each, marks=pytest.mark.slow) for each in PASSING[1:])])
def test_what_may_be_gone_tomorrow_ends_the_search_and_fails_no_trial(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[EdgetlError]
) -> None:
    done: list[Path] = []

    def train(shared: trials.Shared, settings: feature_extraction.Config, report: object) -> object:
        done.append(settings.out)
        settings.out.mkdir(exist_ok=True)
        if len(done) == 2:
            raise error("not now")
        return good()

    run, shared = trained_as(train, photos, tmp_path / "out", monkeypatch)
    with pytest.raises(error, match="not now"):
        explored(run, shared, None, count=4)
    assert [path.name for path in (run.path / "trials").glob("*.json")] == ["0000.json"]
    assert not done[0].exists() and done[1].exists()  # where a fine-tuning goes on
    study = explored(run, shared, None, count=4)  # what the same command does
    assert [each.state for each in study.outcomes] == ["complete"] * 4


@pytest.mark.slow
def test_a_trial_that_always_kills_its_process_fails_alone(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = []
    for processes in (1, 2):
        with monkeypatch.context() as patch:
            run, shared = trained_as(good, photos, tmp_path / str(processes), patch)
        shared = dataclasses.replace(shared, folder=run.path / "trials")
        monkeypatch.setattr(trials, "run_trial", clusters.trial)
        study = explored(run, shared, None, count=4, processes=processes)
        found.append(study.outcomes)
        assert [each.state for each in study.outcomes] == ["complete", "failed", "complete", "complete"]
        assert study.outcomes[1].remark.startswith("its process died 4 times. The system may have ended it")
        assert not list((run.path / "trials").glob("*/"))  # nor its checkpoint
        monkeypatch.setattr(trials, "run_trial", clusters.killed)
        assert explored(run, shared, None, count=4).outcomes == study.outcomes  # nothing is tried again
    assert found[0] == found[1]
    assert "trial 1 is given up" in caplog.text


def test_a_trial_whose_process_died_is_told_at_the_end(found: Search, tmp_path: Path) -> None:
    copy = copied(found, tmp_path)
    died = next(each for each in reversed(found.outcomes) if each.number not in found.best)
    failed = dataclasses.replace(died, state="failed", figures={}, remark=f"{explore.DIED}. For want of memory")
    (copy / f"trials/{died.number:04d}.json").write_text(rundir.sealed(failed))
    again = search.main(settings(Path(found.data), copy, method="tpe", repeats=2))
    assert again.best == found.best
    assert any(note.startswith(f"trial {died.number} failed, for its process died") for note in again.notes)


@pytest.mark.parametrize("error", [*PASSING, ConfigError, BackboneError, ArtifactError])
def test_a_network_that_cannot_be_measured_now_fails_no_trial(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[EdgetlError]
) -> None:
    def excess(settings: object) -> None:
        raise error("no such network")

    run, shared = trained_as(good, photos, tmp_path / "out", monkeypatch)
    shapes = SimpleNamespace(unknown=lambda settings: True, excess=excess)
    if error in PASSING:
        with pytest.raises(error, match="no such network"):
            explored(run, shared, shapes, count=1)
        assert not list((run.path / "trials").glob("*.json"))
    else:
        assert explored(run, shared, shapes, count=1).outcomes[0].state == "failed"


@pytest.mark.slow
def test_settings_that_cannot_work_together_fail_their_trial_alone(photos: Path, tmp_path: Path) -> None:
    config = settings(
        photos,
        tmp_path / "out",
        backbone="MobileNetV2",
        space=("backbone=choice(MobileNetV2,EfficientNetLite0)", "width=choice(0.35,1.0)"),
        fixed=("head=linear",),
        method="grid",
    )
    found = search.main(config)
    assert [each.state for each in found.outcomes].count("complete") == 3
    (failed,) = (each for each in found.outcomes if each.state == "failed")
    assert failed.params == {"backbone": "EfficientNetLite0", "width": "0.35"}
    assert "there is no width 0.35" in failed.remark


@pytest.mark.slow
def test_limits_keep_large_networks_out_before_they_are_trained(photos: Path, tmp_path: Path) -> None:
    config = settings(
        photos,
        tmp_path / "out",
        space=("backbone=choice(MobileNetV3Small,MobileNetV2)", "learning_rate=loguniform(1e-4,1e-2)"),
        max_size_kb=2000.0,
        objectives=("int8_accuracy", "latency_ms"),
        trials=6,
    )
    found = search.main(config)
    by_state = {state: [e for e in found.outcomes if e.state == state] for state in ("complete", "infeasible")}
    assert {each.params["backbone"] for each in by_state["infeasible"]} == {"MobileNetV2"}
    assert {each.params["backbone"] for each in by_state["complete"]} == {"MobileNetV3Small"}
    assert all(not each.curve and each.excess["size_kb"] > 0 for each in by_state["infeasible"])
    assert all({"int8_accuracy", "latency_ms", "size_kb"} <= set(each.figures) for each in by_state["complete"])
    assert found.run == "" and found.best and found.device
    assert search.main(config) == found  # nothing is timed again, and the device is still named
    with pytest.raises(ConfigError, match=r"none of 2 trials keeps --max-size-kb 5; the nearest, trial \d: \d+ kB"):
        search.main(dataclasses.replace(config, out=tmp_path / "none", max_size_kb=5.0, trials=2))


@pytest.fixture
def cluster() -> Iterator[str]:
    with local_cluster(2) as address:
        yield address


@pytest.mark.slow
def test_a_cluster_gives_the_same_trials_also_when_a_worker_is_killed(
    photos: Path, tmp_path: Path, cluster: str
) -> None:
    local = search.main(settings(photos, tmp_path / "local"))
    config = settings(photos, tmp_path / "ray", ray=cluster, cache=tmp_path / "cache")  # the pass is done there as well
    killer = subprocess.Popen([sys.executable, "-c", KILLER, str(config.out / "trials")])
    found = search.main(config)
    assert killer.wait(timeout=10) == 0, "no worker was killed"
    assert timeless(found.outcomes) == timeless(local.outcomes)
    assert found.best == local.best


KILLER = """
import os, signal, subprocess, sys, time
from pathlib import Path
while True:  # until a worker has begun with a trial
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True).stdout
    busy = [int(line.split()[0]) for line in listed.splitlines() if line.split()[1].startswith("ray::_apply")]
    if busy and Path(sys.argv[1]).exists() and list(Path(sys.argv[1]).glob("*.json")):
        os.kill(busy[0], signal.SIGKILL)
        break
    time.sleep(0.01)
"""


def test_scores_of_a_trial_are_those_of_the_library(found: Search) -> None:
    run = rundir.open_run(found.run)
    validation = run.splits().validation
    import keras
    import numpy as np

    model = keras.saving.load_model(run.model_path, compile=False)
    pixels = np.concatenate([batch.pixels for batch in data.decoded(validation, run.inputs)])
    said = np.asarray(model(pixels.astype(np.float32), training=False))
    expected = score(validation.labels, said, run.outputs).primary
    assert found.outcomes[found.best[0]].figures["accuracy"] == pytest.approx(expected, abs=1 / len(validation))
