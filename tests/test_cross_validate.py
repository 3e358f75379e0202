"""Cross-validation: who is tested where, what the folds say, and what an interrupted run keeps."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from photos import make_photo_folder
from scipy.stats import t

from edgetl import rundir
from edgetl.backbones.backbone import Backbone
from edgetl.cross_validation import FoldModel, FoldOutputs, assign, joined, spread
from edgetl.data import Example, Examples
from edgetl.data.examples import Label
from edgetl.errors import ConfigError, DatasetError, EdgetlError, RunError
from edgetl.inputs import InputSpec
from edgetl.metrics import score
from edgetl.outputs import OutputSpec
from edgetl.results import Metrics
from recipes import cross_validate, experiment, feature_extraction, fine_tune
from recipes.cross_validate import Config, CrossValidation, main
from recipes.experiment import Experiment

TINY = {"image_size": 64}
"""As the run that all tests share, whose features are stored then."""


@pytest.fixture(autouse=True, scope="module")
def one_backbone() -> Iterator[None]:
    """Loads the backbone once for all tests of this module: it is frozen, and what is made of it takes it as it is."""
    made: dict[tuple[object, ...], object] = {}
    build = experiment.build_backbone

    def kept(config: Experiment, row: Backbone, spec: InputSpec) -> object:
        key = (row.name, spec, config.weights, config.seed)
        if key not in made:
            made[key] = build(config, row, spec)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build_backbone", kept)
        yield


def made_up(labels: Sequence[Label], groups: list[str] | None = None, **changes: object) -> Examples:
    """Examples without photos."""
    groups = groups or [""] * len(labels)
    pairs = enumerate(zip(labels, groups, strict=True))
    items = tuple(Example(f"{i:03}", Path(f"{i:03}"), label, group=group) for i, (label, group) in pairs)
    return Examples("made up", Path(), ("a", "b", "c"), items, **changes)  # type: ignore[arg-type]


def config(photos: Path | str, out: Path, **changes: object) -> Config:
    return Config(str(photos), out, **(TINY | changes))  # type: ignore[arg-type]


# --- who is tested where --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_stratified(folds: int) -> None:
    examples = made_up([0] * 40 + [1] * 23 + [2] * 5)
    found = assign(examples, folds, seed=1)
    for label in range(3):
        counts = np.bincount(found[examples.labels == label], minlength=folds)
        # Folds are divided one photo at a time by all counts together: each class may be one off an even division.
        assert counts.max() - counts.min() <= 2 and counts.min() >= 1
    sizes = np.bincount(found)
    assert len(sizes) == folds and sizes.max() - sizes.min() <= 2


def test_folds_follow_the_seed_and_not_the_order() -> None:
    examples = made_up([i % 3 for i in range(60)])
    turned = examples.with_items(examples.items[::-1])
    np.testing.assert_array_equal(assign(turned, 4, 7)[::-1], assign(examples, 4, 7))
    assert (assign(examples, 4, 8) != assign(examples, 4, 7)).any()


def test_no_group_is_cut() -> None:
    groups = [f"day{i // 7}" if i < 70 else "" for i in range(90)]
    examples = made_up([i % 3 for i in range(90)], groups)
    found = assign(examples, 5, 0)
    for group in {name for name in groups if name}:
        assert len({fold for fold, name in zip(found, groups, strict=True) if name == group}) == 1
    assert set(found) == set(range(5))


def test_each_fold_has_every_label_and_all_of_the_range_of_numbers() -> None:
    random = np.random.default_rng(0)
    some = [tuple(np.flatnonzero(random.random(3) < (0.6, 0.3, 0.1)).tolist()) for _ in range(100)]
    labels = made_up(some, task="multi_label")
    found = assign(labels, 4, 0)
    assert all(labels.labels[found == fold].any(axis=0).all() for fold in range(4))
    numbers = made_up([(float(i) ** 2, 0.0, 0.0) for i in range(100)], task="regression")
    found = assign(numbers, 4, 0)
    medians = [np.median(np.sqrt(numbers.labels[found == fold, 0])) for fold in range(4)]
    assert max(medians) - min(medians) < 15  # of 0..99; sorted folds would be 75 apart


@pytest.mark.parametrize(
    ("examples", "folds", "error", "message"),
    [
        (made_up([0, 1, 2] * 5), 1, ConfigError, "--folds 1: need at least 2"),
        (made_up([0] * 9 + [1] * 9 + [2] * 3), 4, DatasetError, "3 examples of class c, fewer than --folds 4"),
        (made_up([0, 1, 2] * 4, ["x", "y", "z"] * 4), 5, DatasetError, "3 groups, fewer than --folds 5"),
        (made_up([0, 1, 2] * 4, [f"g{i // 3}" for i in range(12)]), 5, DatasetError, "4 groups, fewer than --folds 5"),
        (made_up([(0,)] * 9 + [(0, 1, 2)], task="multi_label"), 2, DatasetError, "1 examples of label b"),
        (made_up([(1.0, 2.0, 3.0)] * 3, task="regression"), 4, DatasetError, "3 examples, fewer than --folds 4"),
    ],
)
def test_what_can_not_be_divided(examples: Examples, folds: int, error: type[EdgetlError], message: str) -> None:
    with pytest.raises(error, match=message):
        assign(examples, folds, 0)


# --- what the folds say ---------------------------------------------------------------------------------------------


def test_interval_is_wider_than_the_folds_alone_would_make_it() -> None:
    figures = [0.8, 0.84, 0.82, 0.86, 0.78]
    found = spread(figures, tested=100, trained=400)
    deviation = float(np.std(figures, ddof=1))
    assert [found.mean, found.deviation] == pytest.approx([0.82, deviation])
    half = t.ppf(0.975, 4) * deviation * (1 / 5 + 1 / 4) ** 0.5
    assert [found.low, found.high] == pytest.approx([0.82 - half, 0.82 + half])
    assert half > 1.4 * t.ppf(0.975, 4) * deviation / 5**0.5
    assert spread([0.99, 1.0, 0.97], 10, 20).high == 1.0
    assert spread([-0.5, 0.5], 10, 10).low < -1  # R2 has no lower end


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Nearest-centroid classifiers on 60 points: the mean of their true accuracies must lie within, nearly always."""
    random = np.random.default_rng(0)
    held = []
    for _ in range(150):
        labels = np.arange(60) % 2
        x = random.normal(size=(60, 5)) + 0.5 * labels[:, None]
        fold = random.permutation(60) % 5
        beyond = np.arange(4000) % 2
        new = random.normal(size=(4000, 5)) + 0.5 * beyond[:, None]
        figures, truths = [], []
        for number in range(5):
            centres = np.stack([x[(fold != number) & (labels == k)].mean(axis=0) for k in (0, 1)])

            def right(points: np.ndarray, true: np.ndarray, centres: np.ndarray = centres) -> float:
                near = ((points[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
                return float((near == true).mean())

            figures.append(right(x[fold == number], labels[fold == number]))
            truths.append(right(new, beyond))
        found = spread(figures, 12, 48)
        held.append(found.low <= np.mean(truths) <= found.high)
    # 95 % promised; 150 trials of 95 % are below 91 % once in a hundred times.
    assert np.mean(held) > 0.91


def parts() -> list[FoldOutputs]:
    specs = [OutputSpec("multi_label", ("a", "b"), (low, 0.5)) for low in (0.2, 0.4)]
    models = [FoldModel(2, 1, "C=1", spec) for spec in specs]
    said = [np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), np.array([[0.5, 0.6]], np.float32)]
    return [
        FoldOutputs(models[0], ("c", "a"), said[0], "hash"),
        FoldOutputs(models[1], ("b",), said[1], "hash"),
    ]


def test_parts_are_joined_in_the_order_of_the_examples() -> None:
    examples = Examples("s", Path(), ("a", "b"), tuple(Example(id_, Path(id_), ()) for id_ in "abc"), "multi_label")
    outputs, spec = joined(parts(), examples)
    np.testing.assert_allclose(outputs, [[0.3, 0.4], [0.5, 0.6], [0.1, 0.2]])
    assert list(spec.thresholds) == pytest.approx([0.3, 0.5]) and spec.deviations == ()


def test_parts_are_stored_and_damage_is_noticed() -> None:
    part = parts()[0]
    content = part.to_bytes()
    again = FoldOutputs.from_bytes(content)
    assert (again.model, again.ids, again.splits_sha256) == (part.model, part.ids, part.splits_sha256)
    np.testing.assert_array_equal(again.outputs, part.outputs)
    for damaged in (content[: len(content) // 2], b"", content[:300] + b"damage" + content[306:]):
        with pytest.raises(ValueError, match=r"\w"):
            FoldOutputs.from_bytes(damaged)


# --- the recipe -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """Three folds and a refit; read only."""
    return main(config(photo_folder, tmp_path_factory.mktemp("folds") / "out", folds=3, refit=True))


def test_every_photo_is_tested_once_by_a_model_that_has_not_seen_it(
    finished: CrossValidation, photo_folder: Path, tmp_path: Path
) -> None:
    with np.load(Path(finished.path) / cross_validate.PREDICTIONS) as said:
        ids, labels, outputs, fold = (said[name] for name in ("ids", "labels", "outputs", "fold"))
    assert len(set(ids)) == 60 and np.bincount(fold).tolist() == [0, 20, 20, 20]
    spec = OutputSpec("classification", ("cat", "dog", "owl"))
    assert score(labels, outputs, spec) == finished.together
    for part in finished.folds:
        assert score(labels[fold == part.number], outputs[fold == part.number], spec) == part.test
        assert part.trained + part.validated == 40
    assert finished.spread.mean == pytest.approx(np.mean([part.test.primary for part in finished.folds]))
    # The recipe itself, given the second fold as test split, comes to the same.
    settings = feature_extraction.Config(str(photo_folder), tmp_path / "second", **TINY)  # type: ignore[arg-type]
    whole = cross_validate.whole(experiment.load_examples(settings))
    run = feature_extraction.train_on(settings, cross_validate.marked(cross_validate.divided(settings, whole, 3)[1]))
    assert [example.id for example in run.splits().test] == sorted(ids[fold == 2])
    assert rundir.read_json(Metrics, run.path / rundir.METRICS).test == finished.folds[1].test


@pytest.mark.slow
def test_refit_is_a_run_on_all_photos_that_claims_no_test(finished: CrossValidation, tmp_path: Path) -> None:
    from export import convert, evaluate

    run = rundir.open_run(finished.refit)
    splits = run.splits()
    assert len(splits.train) + len(splits.validation) == 60 and not len(splits.test)
    assert len(splits.train) > max(fold.trained for fold in finished.folds)
    assert rundir.read_json(Metrics, run.path / rundir.METRICS).test is None
    assert "test top-1" not in feature_extraction.show(run)
    assert any("none is left to test it on" in note for note in finished.notes)
    assert f"next: python -m export.convert {run.path}" in cross_validate.show(finished)
    (artifact,) = convert.main(convert.Config(run.path, schemes=("float32",)))
    assert artifact.run_sha256 == run.model_sha256
    with pytest.raises(RunError, match="no photos were held out for testing"):
        evaluate.main(evaluate.Config(run.path))


def test_finished_folds_are_kept(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = []
    probed = cross_validate.probed

    def counted(*arguments: object) -> FoldOutputs:
        if len(made) == 2:
            raise KeyboardInterrupt
        found = probed(*arguments)  # type: ignore[arg-type]
        made.append(list(found.ids))
        return found

    monkeypatch.setattr(cross_validate, "probed", counted)
    settings = config(photo_folder, tmp_path / "out", folds=4)
    with pytest.raises(KeyboardInterrupt):
        main(settings)
    assert len(made) == 2 and not (settings.out / cross_validate.RESULT).exists()
    before = [list(ids) for ids in made]
    made.clear()
    resumed = main(settings)
    assert len(made) == 2 and not {id_ for ids in made for id_ in ids} & {id_ for ids in before for id_ in ids}
    (settings.out / "fold3.npz").write_bytes(b"damaged")
    made.clear()
    assert main(settings) == resumed and len(made) == 1
    assert json.loads((settings.out / cross_validate.RESULT).read_text())["spread"]["mean"] == resumed.spread.mean
    with pytest.raises(RunError, match="folds: 4 -> 3"):
        main(dataclasses.replace(settings, folds=3))


@pytest.mark.parametrize("task", ["multi_label", "regression", "ordinal"])
def test_every_task(task: str, photo_folder: Path, tmp_path: Path) -> None:
    kinds = ["cat", "dog", "owl"]
    group, rows = {}, []
    for number, photo in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        kind, id_ = kinds.index(photo.parent.name), str(photo.relative_to(photo_folder))
        group[id_] = f"day{number // 2}"
        told = {"multi_label": ["x", "x|y", "y|z"][kind], "regression": 10 * kind + number % 3, "ordinal": kind}[task]
        rows.append(f"{id_},{told},{group[id_]}")
    column = {"multi_label": "labels", "regression": "target", "ordinal": "label"}[task]
    table = photo_folder / f"{task}.csv"
    table.write_text("\n".join([f"path,{column},group", *rows, ""]))
    try:
        found = main(config(table, tmp_path / "out", folds=2, task=task, refit=True))
        assert len(rundir.open_run(found.refit).splits().test) == 0
    finally:
        table.unlink()
    assert found.together.task == task and found.together.samples == 60
    # Colour and stripes tell the kinds apart; by chance all would be below 0.5.
    assert found.together.primary > 0.7
    assert "photos of one group are in one fold" in found.notes
    with np.load(tmp_path / "out" / cross_validate.PREDICTIONS) as said:
        folds = {(group[str(id_)], int(fold)) for id_, fold in zip(said["ids"], said["fold"], strict=True)}
    assert len(folds) == 30 and {fold for _, fold in folds} == {1, 2}


def test_folds_of_a_table_that_was_edited_are_made_again(photo_folder: Path, tmp_path: Path) -> None:
    photos = sorted(str(photo.relative_to(photo_folder)) for photo in photo_folder.rglob("*.jpg"))
    table, settings = photo_folder / "edited.csv", config(photo_folder / "edited.csv", tmp_path / "out", folds=2)
    groups: dict[int, dict[str, str]] = {}
    try:
        for size in (2, 5):
            groups[size] = {id_: f"day{number // size}" for number, id_ in enumerate(photos)}
            rows = [f"{id_},{Path(id_).parts[0]},{groups[size][id_]}" for id_ in photos]
            table.write_text("\n".join(["path,label,group", *rows, ""]))
            assert main(settings).together.samples == 60
    finally:
        table.unlink()
    with np.load(settings.out / cross_validate.PREDICTIONS) as said:
        folds = {(groups[5][str(id_)], int(fold)) for id_, fold in zip(said["ids"], said["fold"], strict=True)}
    assert len(folds) == 12, "the groups that it has now are whole"


def test_splits_that_the_data_brings_are_not_heeded(tmp_path: Path) -> None:
    make_photo_folder(tmp_path / "photos", {"cat": 8, "dog": 8})
    same = sorted((tmp_path / "photos" / "cat").iterdir())
    (same[0].with_name("copy.jpg")).write_bytes(same[0].read_bytes())
    ids = sorted(str(photo.relative_to(tmp_path)) for photo in (tmp_path / "photos").rglob("*.jpg"))
    rows = [f"{id_},{Path(id_).parts[1]},{'test' if 'copy' in id_ else 'train'}" for id_ in ids]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, ""]))
    examples = cross_validate.pooled(config(tmp_path / "t.csv", tmp_path / "out"))
    assert {item.split for item in examples} == {None}
    copies = {item.group for item in examples if item.path.read_bytes() == same[0].read_bytes()}
    assert len(copies) == 1 and copies != {""}, "a copy in another split is with its own, not refused"


@pytest.mark.slow
def test_fine_tuned_folds_are_runs_that_resume(photo_folder: Path, tmp_path: Path) -> None:
    settings = config(photo_folder, tmp_path / "out", recipe="fine_tune", folds=2, epochs=1, views=1, thaw="2")
    found = main(settings)
    for number, fold in enumerate(found.folds, 1):
        run = rundir.open_run(settings.out / f"fold{number}")
        test = rundir.read_json(fine_tune.Metrics, run.path / rundir.METRICS).test
        assert run.manifest.recipe == "fine_tune" and test is not None and test.samples == fold.test.samples == 30
        # Keras in training, the interpreter here: sums in another order.
        assert fold.test.log_loss == pytest.approx(test.log_loss, abs=1e-3)  # type: ignore[union-attr]
    (settings.out / "fold1.npz").unlink()
    times = {path: path.stat().st_mtime_ns for path in settings.out.rglob("model.keras")}
    assert main(settings).spread == found.spread
    assert {path: path.stat().st_mtime_ns for path in settings.out.rglob("model.keras")} == times


# --- what can't work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"folds": 1}, ConfigError, "--folds 1: need at least 2"),
        ({"folds": 21}, DatasetError, "20 examples of class cat, fewer than --folds 21"),
        ({"epochs": 3}, ConfigError, "--epochs: works with --recipe fine_tune"),
        ({"resume": True, "recipe": "fine_tune"}, RunError, "holds no folds to go on with"),
        ({"recipe": "fine_tune", "epochs": 0}, ConfigError, "--epochs 0"),
        ({"recipe": "forest"}, ConfigError, "recipe: Input should be"),
        ({"validation_fraction": 1.0}, ConfigError, "validation_fraction=1.0"),
    ],
)
def test_settings_that_can_not_work_are_refused_at_once(
    changes: dict[str, object],
    error: type[EdgetlError],
    message: str,
    photo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experiment, "build_backbone", lambda *_: pytest.fail("too late"))
    with pytest.raises(error, match=message):
        main(config(photo_folder, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_out_inside_the_data_or_in_use(photo_folder: Path, tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 6, "dog": 6})
    with pytest.raises(ConfigError, match="lies in the data"):
        main(config(root, root / "folds"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a run directory"):
        main(config(photo_folder, tmp_path / "taken"))


def test_two_examples_of_a_class_can_not_be_learned_validated_and_tested(tmp_path: Path) -> None:
    root = make_photo_folder(tmp_path / "photos", {"cat": 6, "dog": 2})
    with pytest.raises(DatasetError, match=r"class dog \(see dog/.*\) has 1 example\(s\)"):
        main(config(root, tmp_path / "out", folds=2))
