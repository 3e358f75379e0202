"""Choosing a backbone: the distance from pretraining, the recommendation, and the recipe on tiny networks."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import skimage
from numpy.typing import ArrayLike
from photos import make_photo, make_photo_folder
from PIL import Image

from edgetl import comparison, domain
from edgetl.backbones import registry, weights
from edgetl.errors import ArtifactError, BackboneError, ConfigError, DatasetError, EdgetlError, RunError, WeightsError
from edgetl.inputs import ImageInput
from edgetl.metrics import score
from edgetl.outputs import OutputSpec
from edgetl.plots import Tradeoff, tradeoffs
from edgetl.rundir import RunDir
from recipes import choose_backbone, experiment
from recipes.choose_backbone import Candidate, Choice, Config, Trial, main, recommend

CLASSES = OutputSpec("classification", ("cat", "dog"))


def config(photos: Path, out: Path, **changes: object) -> Config:
    """Random weights at a small size: nothing to load, seconds to run."""
    tiny = {"backbones": "MobileNet,MobileNetV2", "weights": "none", "image_size": 32, "runs": 3, "folds": 3}
    return Config(str(photos), out, **(tiny | changes))  # type: ignore[arg-type]


# --- distance from pretraining --------------------------------------------------------------------------------------


def normalizing(mean: ArrayLike, variance: ArrayLike) -> keras.Model:
    """A network of one BatchNorm layer, on raw pixels."""
    images = keras.Input((8, 8, 3))
    layer = keras.layers.BatchNormalization(epsilon=1e-3)
    model = keras.Model(images, keras.layers.GlobalAveragePooling2D()(layer(images)))
    layer.set_weights([np.ones(3), np.zeros(3), np.broadcast_to(mean, 3), np.broadcast_to(variance, 3)])
    return model


def test_distance_is_the_divergence_of_normal_distributions() -> None:
    photos = list(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    channel = np.stack(photos).astype(np.float64).reshape(-1, 3)
    means, variances = channel.mean(axis=0), channel.var(axis=0)
    # float32 sums of squares of 255 leave five digits.
    assert domain.distance(normalizing(means, variances), photos) == pytest.approx(0, abs=1e-4)
    away = domain.distance(normalizing(50.0, 2000.0), photos)
    # One layer, three channels: their median.
    each = (variances / 2000 + (means - 50) ** 2 / 2000 - 1 - np.log(variances / 2000)) / 2
    assert away == pytest.approx(np.median(each), rel=1e-3)


def test_distance_is_unknown_without_statistics() -> None:
    images = keras.Input((8, 8, 3))
    plain = keras.Model(images, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(images)))
    assert domain.distance(plain, [np.zeros((8, 8, 3), np.uint8)] * 3) is None


def test_words_follow_the_distance() -> None:
    said = [domain.in_words(found) for found in (0.0, 0.02, 0.1, 0.2, 5.0)]
    assert said[0] == said[1] == "like the pretraining photos"
    assert said[2].startswith("some way") and said[3] == said[4] == "far from the pretraining photos"


@pytest.mark.slow
def test_everyday_photos_are_near_and_noise_is_far() -> None:

    from edgetl.backbones.build import build

    backbone = build("EfficientNetLite0", ImageInput(224, 224))
    random = np.random.default_rng(0)
    everyday = []
    folder = Path(skimage.__file__).parent / "data"
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"):
        picture = np.asarray(Image.open(folder / name).convert("RGB"))
        for _ in range(8):
            top, left = (int(random.integers(0, side - 223)) for side in picture.shape[:2])
            everyday.append(np.ascontiguousarray(picture[top : top + 224, left : left + 224]))
    stripes = [make_photo(kind, number, (224, 224)) for kind in range(3) for number in range(10)]
    noise = list(random.integers(0, 256, (20, 224, 224, 3), dtype=np.uint8))
    near, drawn, far = (domain.distance(backbone, photos) for photos in (everyday, stripes, noise))
    assert near is not None and drawn is not None and far is not None
    # Four pictures are no ImageNet: 0.02 with eleven (`docs/choosing.md`).
    assert near < 0.1 < 0.3 < drawn and far > 0.3


# --- the recommendation ---------------------------------------------------------------------------------------------


def trial(name: str, right: float, latency: float | None, logme: float = 0.0, photos: int = 200) -> Trial:
    """A backbone whose probe names so many photos rightly: the first ones."""
    labels = np.arange(photos) % 2
    said = np.eye(2)[np.where(np.arange(photos) < right * photos, labels, 1 - labels)].astype(np.float32)
    size = None if latency is None else 1000
    refused = "no int8" if latency is None else ""
    found = Candidate(name, 224, 1000, 0.7, logme, score(labels, said, CLASSES), CLASSES, None, size, refused, latency)
    return Trial(found, tuple(f"{i:03}" for i in range(photos)), said)


def recommended(*trials: Trial) -> tuple[str, str]:
    from edgetl.data import Example, Examples

    items = tuple(Example(id_, Path(id_), index % 2) for index, id_ in enumerate(trials[0].ids))
    sample = Examples("s", Path(), CLASSES.names, items)
    return recommend([each.candidate for each in trials], trials, sample)


def test_fastest_of_those_that_are_not_measurably_worse() -> None:
    name, reason = recommended(trial("slow", 0.90, 9.0), trial("quick", 0.89, 4.0), trial("poor", 0.6, 1.0))
    assert name == "quick"
    low, high = comparison.paired_interval(2, 0, 200)
    assert f"slow at 9.00 ms (1.0 points more, 95 % interval {100 * low:.1f} to {100 * high:.1f})" in reason
    assert recommended(trial("slow", 0.90, 9.0), trial("poor", 0.6, 1.0))[0] == "slow"
    name, reason = recommended(trial("slow", 0.7, 9.0), trial("good", 0.9, 4.0))
    assert name == "good" and reason.endswith("the best probe on 200 photos and the fastest")


def test_labels_are_said_by_the_thresholds_of_the_backbone_itself() -> None:
    """The quicker one's scores are half of the other's, and so are its thresholds: both say the same."""
    from edgetl.data import Example, Examples

    random = np.random.default_rng(0)
    labels = (random.random((200, 2)) < 0.5).astype(np.float32)
    found = []
    for name, scale, latency in (("slow", 1.0, 9.0), ("quick", 0.5, 4.0)):
        spec = OutputSpec("multi_label", ("a", "b"), (0.5 * scale,) * 2)
        said = (scale * np.where(labels > 0, 0.9, 0.1)).astype(np.float32)
        probe = score(labels, said, spec)
        one = Candidate(name, 224, 1000, 0.7, -float(scale < 1), probe, spec, None, 1000, "", latency)
        found.append(Trial(one, tuple(f"{i:03}" for i in range(200)), said))
    items = tuple(
        Example(id_, Path(id_), tuple(np.flatnonzero(row).tolist()))
        for id_, row in zip(found[0].ids, labels, strict=True)
    )
    sample = Examples("s", Path(), ("a", "b"), items, "multi_label")
    name, reason = recommend([each.candidate for each in found], found, sample)
    assert name == "quick" and "(0.0 points more" in reason


def test_what_has_no_int8_form_is_not_recommended() -> None:
    assert recommended(trial("float", 0.99, None), trial("int", 0.7, 5.0))[0] == "int"
    name, reason = recommended(trial("a", 0.9, None, logme=-0.3), trial("b", 0.9, None, logme=-0.2))
    assert name == "b" and "none has an int8 form" in reason


def test_picture_repeats_and_shows_what_is_drawn() -> None:
    scores = [trial(name, right, 1.0).candidate.probe for name, right in (("a", 0.9), ("b", 0.8))]
    points = [Tradeoff("a_$x", 3.0, 4_000_000, scores[0]), Tradeoff("b", 2.0, 900_000, scores[1])]
    drawn = tradeoffs(points, "b", "photos $5_a")
    assert drawn.startswith(b"\x89PNG") and drawn == tradeoffs(points, "b", "photos $5_a")
    assert drawn != tradeoffs(points, "a_$x", "photos $5_a") and drawn != tradeoffs(points[:1], "b", "photos $5_a")


# --- the recipe -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Config, Choice]]:
    """Two tiny networks; read only."""
    settings = config(photo_folder, tmp_path_factory.mktemp("choice") / "out", sample=30)
    yield settings, main(settings)


@pytest.mark.slow
def test_all_is_measured_and_written(chosen: tuple[Config, Choice]) -> None:
    settings, choice = chosen
    assert (choice.photos, choice.sample) == (60, 30)
    assert {each.backbone for each in choice.candidates} == {"MobileNet", "MobileNetV2"}
    assert [each.logme for each in choice.candidates] == sorted((e.logme for e in choice.candidates), reverse=True)
    for each in choice.candidates:
        assert each.probe.samples == 30 and each.distance is None  # random weights remember no photos
        file = settings.out / f"{each.backbone}.tflite"
        assert each.size_bytes == file.stat().st_size and not each.refused
        assert (
            each.latency_ms
            and len(json.loads((settings.out / f"{each.backbone}.latency.json").read_text())["runs_ms"]) == 3
        )
    assert choice.recommended in {each.backbone for each in choice.candidates}
    stored = json.loads((settings.out / choose_backbone.RESULT).read_text())
    assert stored["recommended"] == choice.recommended and len(stored["candidates"]) == 2
    assert (settings.out / choose_backbone.PICTURE).read_bytes().startswith(b"\x89PNG")
    shown = choose_backbone.show(choice)
    assert "LogME" in shown and f"--backbone {choice.recommended} --out" in shown
    assert f"recommended: {choice.reason}" in shown


@pytest.mark.slow
def test_finished_backbones_are_kept(
    chosen: tuple[Config, Choice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    settings, choice = chosen
    shutil.copytree(settings.out, tmp_path / "out")
    settings = dataclasses.replace(settings, out=tmp_path / "out")
    built: list[str] = []
    build = experiment.build_backbone

    def counted(*arguments: object) -> object:
        built.append(arguments[1].name)  # type: ignore[attr-defined]
        return build(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(experiment, "build_backbone", counted)
    converted = (settings.out / "MobileNetV2.tflite").read_bytes()  # what takes seconds, and is not what is tested here
    monkeypatch.setattr(choose_backbone, "integer_form", lambda *_: (converted, ""))
    (settings.out / "MobileNetV2.json").unlink()  # the file that comes last, as a kill leaves it
    (settings.out / "MobileNet.npz").write_bytes(b"damaged")
    again = main(settings)
    assert built == ["MobileNet", "MobileNetV2"]
    assert [(e.backbone, e.logme, e.probe) for e in again.candidates] == [
        (e.backbone, e.logme, e.probe) for e in choice.candidates
    ]
    with pytest.raises(RunError, match="sample: 30 -> 24"):
        main(dataclasses.replace(settings, sample=24))


@pytest.mark.slow
def test_a_backbone_without_int8_form_stays_in_the_table(
    chosen: tuple[Config, Choice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export import quantize

    def refuse(*_: object) -> None:
        raise ArtifactError("int8: these operators stay in floating point: NEG")

    monkeypatch.setattr(quantize.Quantizer, "quantize", refuse)
    choice = main(dataclasses.replace(chosen[0], out=tmp_path / "out", backbones="MobileNet"))
    (only,) = choice.candidates
    assert only.size_bytes is only.latency_ms is None and "NEG" in only.refused
    assert "none has an int8 form" in choice.reason and "NEG" in choose_backbone.show(choice)
    assert not (tmp_path / "out" / choose_backbone.PICTURE).exists()


@pytest.mark.parametrize("task", ["multi_label", "regression"])
@pytest.mark.slow
def test_other_tasks(task: str, photo_folder: Path, tmp_path: Path) -> None:
    kinds = ["cat", "dog", "owl"]
    rows = []
    for number, photo in enumerate(sorted(photo_folder.rglob("*.jpg"))):
        kind = kinds.index(photo.parent.name)
        told = ["x", "x|y", "y|z"][kind] if task == "multi_label" else 10 * kind + number % 3
        rows.append(f"{photo.relative_to(photo_folder)},{told}")
    table = photo_folder / f"choose_{task}.csv"
    table.write_text("\n".join([f"path,{'labels' if task == 'multi_label' else 'target'}", *rows, ""]))
    try:
        choice = main(config(table, tmp_path / "out", weights="imagenet", backbones="EfficientNetLite0", image_size=64))
    finally:
        table.unlink()
    (only,) = choice.candidates
    assert only.probe.task == task and only.probe.primary > 0.7  # colours tell the kinds apart
    assert only.distance is not None and only.distance > 0.15  # stripes
    assert np.isfinite(only.logme) and only.latency_ms


def test_the_next_command_says_of_the_photos_what_this_one_said(tmp_path: Path) -> None:
    import shlex

    import tyro

    from recipes import cross_validate

    settings = config(
        tmp_path / "my photos" / "t.csv", tmp_path / "out", task="ordinal", class_order=("low", "very high")
    )
    words = shlex.split(choose_backbone.onward(settings, "MobileNet", RunDir(tmp_path / "out")))
    meant = tyro.cli(cross_validate.Config, args=words[3:])
    assert (meant.data, meant.backbone, meant.image_size) == (settings.data, "MobileNet", 32)
    assert (meant.task, meant.class_order, meant.out) == ("ordinal", ("low", "very high"), tmp_path / "out-folds")
    assert (meant.test_fraction, meant.weights) == (0.0, "none")


@pytest.mark.slow
def test_pretrained_features_rank_above_random_ones(photo_folder: Path, tmp_path: Path) -> None:
    found = [
        main(config(photo_folder, tmp_path / kind, weights=kind, backbones="EfficientNetLite0", image_size=64))
        for kind in ("imagenet", "none")
    ]
    assert found[0].candidates[0].logme > found[1].candidates[0].logme


# --- groups ---------------------------------------------------------------------------------------------------------


def test_edge_leaves_out_what_is_not_on_this_machine(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    settings = config(photo_folder, tmp_path / "out", backbones="edge", weights="imagenet", image_size=0)
    rows, skipped = choose_backbone.available(settings, choose_backbone.named(settings))
    assert [row.name for row in rows] == ["EfficientNetLite0", "EfficientNetLite1", "EfficientNetLite2"]
    assert "MobileNetV2" in skipped and "ResNet50" not in skipped  # which is none of the edge family
    assert all(row.parameters <= choose_backbone.EDGE_PARAMETERS for row in rows)
    spec, row = ImageInput(224, 224), registry.get("MobileNetV2")
    assert not weights.at_hand(row, spec)
    file = weights.cache_path(row.imagenet.for_size(224, 224))  # type: ignore[union-attr]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert weights.at_hand(row, spec)


def test_a_backbone_that_was_named_is_never_left_out(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "packaged_path", lambda packaged: (_ for _ in ()).throw(WeightsError("not installed")))
    with pytest.raises(WeightsError, match="not installed"):
        main(config(photo_folder, tmp_path / "out", backbones="EfficientNetLite0", weights="imagenet"))


# --- what can't work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"backbones": "MobileNet,MobilNetV2"}, BackboneError, "'MobilNetV2' is unknown. Did you mean MobileNetV2"),
        ({"backbones": " ,"}, ConfigError, "no name. Give some, joined by commas, or edge, or all"),
        ({"sample": 3}, ConfigError, "--sample 3: must be at least 10"),
        (
            {"sample": 10, "folds": 5},
            ConfigError,
            r"--sample 10: too small. .* [34] examples of class \w+, fewer than --folds 5",
        ),
        ({"folds": 30, "sample": 60}, DatasetError, "20 examples of class cat, fewer than --folds 30"),
        ({"folds": 1}, ConfigError, "--folds 1"),
        ({"runs": 0}, ConfigError, "--runs 0"),
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
        main(config(root, root / "choice"))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty and not a run directory"):
        main(config(photo_folder, tmp_path / "taken"))
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]
