"""Fine-tuning in phases: what learns, what stays, what survives being stopped at any moment."""

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import keras
import numpy as np
import pytest
from photos import make_photo_folder
from tiny_training import (
    BLOCKS,
    CLASSES,
    SIZE,
    PixelSource,
    changed,
    labels_of,
    one_phase,
    timeless,
    tiny_model,
    tiny_training,
    two_phases,
    weights_of,
)

from edgetl import checkpoints, data, fine_tuning
from edgetl.batches import StreamedSource
from edgetl.errors import ConfigError, DatasetError, RunError
from edgetl.history import Epoch
from edgetl.inputs import ImageInput
from edgetl.judging import PROBE, Judge
from edgetl.phases import Phase
from edgetl.trainee import Trainee

ROOT = Path(__file__).parent.parent
STATISTICS = ("moving_mean", "moving_variance")


def paths(*blocks: str, norms: tuple[str, ...] = ("gamma", "beta")) -> set[str]:
    """Weights of blocks, and of the head."""
    convolutions = {f"{block}_conv/{name}" for block in blocks for name in ("kernel", "bias")}
    return convolutions | {f"{b}_bn/{name}" for b in blocks for name in norms} | HEAD


HEAD = {"probabilities/kernel", "probabilities/bias"}


def test_each_phase_changes_its_blocks_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_model()
    seen = [weights_of(model)]
    training = tiny_training(
        tmp_path / "c.npz", two_phases(3e-2), model=model, on_epoch=lambda history: seen.append(weights_of(model))
    )
    history = training.run()
    assert len(seen) == 5
    for before, after, blocks in [
        (0, 1, ["three"]),
        (1, 2, ["three"]),
        (2, 3, ["two", "three"]),
        (3, 4, ["two", "three"]),
    ]:
        assert changed(seen[before], seen[after]) == paths(*blocks, norms=())
    assert [(row.phase, row.epoch) for row in history] == [
        (PROBE, 0),
        ("three", 1),
        ("three", 2),
        ("two..three", 1),
        ("two..three", 2),
    ]
    assert history[0].images_per_second == history[0].head_learning_rate == 0
    assert all(row.images_per_second > 0 and row.seconds > 0 for row in history[1:])
    # Six steps each: the cosine from the top after two steps of warm-up, here after one more and at its end.
    for first, last in (history[1:3], history[3:5]):
        assert 0 < first.head_learning_rate < 3e-2 and last.head_learning_rate < 1e-9
        assert first.backbone_learning_rate == pytest.approx(first.head_learning_rate / 2, rel=1e-6)
    assert history[-1].fit_loss < 0.95 * history[0].fit_loss, "it learns"


def test_batch_norm_trains_in_thawed_blocks_only(tmp_path: Path) -> None:
    model = tiny_model()
    before = weights_of(model)
    tiny_training(tmp_path / "c.npz", one_phase(1), model=model, batch_norm="train").run()
    norms = ("gamma", "beta", *STATISTICS)
    # A bias in front of a BatchNorm that uses the batch's own mean has no gradient but rounding errors.
    biases = {"two_conv/bias", "three_conv/bias"}
    assert changed(before, weights_of(model)) - biases == paths("two", "three", norms=norms) - biases


def test_recalibration_changes_statistics_of_thawed_blocks_after_training(tmp_path: Path) -> None:
    frozen, measured = tiny_model(), tiny_model()
    first = tiny_training(tmp_path / "a.npz", one_phase(1), model=frozen).run()
    second = tiny_training(tmp_path / "b.npz", one_phase(1), model=measured, batch_norm="recalibrate").run()
    assert timeless(first) == timeless(second)
    statistics = {f"{block}_bn/{name}" for block in ("two", "three") for name in STATISTICS}
    assert changed(weights_of(frozen), weights_of(measured)) == statistics


def test_label_smoothing_class_weights_and_mixing_reach_the_loss(tmp_path: Path) -> None:
    labels = np.array([0] * 7 + [1] * 4 + [2] * 3)
    source = PixelSource(labels)
    still = {"labels": labels, "batch_size": 14, "warmup_epochs": 0.0}

    def first_row(name: str, **settings: Any) -> Epoch:
        phases = one_phase(1, rate=1e-30)  # nothing moves in float32
        return tiny_training(tmp_path / name, phases, model=tiny_model(0.0), **still, **settings).run()[1]

    row = first_row("a", label_smoothing=0.1, class_weights=True)
    probabilities = tiny_model(0.0).predict_on_batch(source.pixels[:, 0].astype(np.float32)).astype(np.float64)
    target = 0.9 * np.eye(CLASSES)[labels] + 0.1 / CLASSES
    weights = (14 / (CLASSES * np.array([7, 4, 3])))[labels]
    expected = (weights * -(target * np.log(probabilities)).sum(axis=1)).mean()
    assert row.train_loss == pytest.approx(expected, rel=1e-5)  # float32: some hundred roundings of 6e-8
    plain = -np.log(probabilities[np.arange(14), labels]).mean()
    assert abs(expected - plain) > 1e-2 * plain
    for mixing in ({"mixup": 1.0}, {"cutmix": 1.0}):
        mixed = first_row("-".join(mixing), **mixing)
        assert abs(mixed.train_loss - plain) > 1e-4 * plain  # rounding: 1e-6
        assert mixed.validation_loss == row.validation_loss
        assert mixed.fit_loss == row.fit_loss


def test_averaged_weights_are_judged_and_kept_while_the_raw_ones_train_on(tmp_path: Path) -> None:
    def run(ema: float) -> tuple[list[dict[str, np.ndarray]], keras.Model, tuple[Epoch, ...]]:
        model, seen = tiny_model(0.0), []
        training = tiny_training(
            tmp_path / f"{ema}.npz",
            one_phase(3),
            model=model,
            batch_size=14,
            schedule="constant",
            warmup_epochs=0.0,
            optimizer={"ema_momentum": ema},
            on_epoch=lambda history: seen.append(weights_of(model)),
        )
        return seen, model, training.run()

    plain, _, plain_history = run(0.0)
    raw, model, history = run(0.8)
    assert all(not changed(a, b) for a, b in zip(plain, raw, strict=True)), "raw weights are not touched"
    average = raw[0]  # one step per epoch; Keras begins with the weights after the first
    for step in raw[1:]:
        average = {path: 0.8 * average[path] + 0.2 * step[path] for path in step}
    for path, weight in weights_of(model).items():
        np.testing.assert_allclose(weight, average[path], rtol=1e-6, atol=1e-7)  # two float32 roundings
    pixels = PixelSource(labels_of(6), seed=1).pixels[:, 0].astype(np.float32)
    probabilities = model.predict_on_batch(pixels)[np.arange(6), labels_of(6)]
    assert history[-1].validation_loss == pytest.approx(-np.log(probabilities).mean(), rel=1e-5)
    assert history[-1].validation_loss != plain_history[-1].validation_loss


def test_the_pull_to_the_start_holds_the_backbone_and_not_the_head(tmp_path: Path) -> None:
    def moved(l2_sp: float) -> tuple[float, float]:
        model = tiny_model(0.0)
        for layer in model.layers:
            layer.trainable = False  # as an earlier training may have left it
        before = weights_of(model)
        optimizer = {"name": "sgd", "l2_sp": l2_sp}
        tiny_training(tmp_path / f"{l2_sp}", one_phase(3), model=model, schedule="constant", optimizer=optimizer).run()
        after = weights_of(model)
        distance = {path: float(np.abs(after[path] - before[path]).max()) for path in before}
        return distance["two_conv/kernel"], distance["probabilities/kernel"]

    free, held = moved(0.0), moved(30.0)
    assert held[0] < 0.5 * free[0]
    assert held[1] > 0.5 * free[1]


def script_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """Make each epoch of a one-phase training have a given validation loss, whatever it learns."""

    measured = Judge.row

    def row(self: Judge, phase: str, epoch: int, *others: Any) -> Epoch:
        return dataclasses.replace(measured(self, phase, epoch, *others), validation_loss=losses[epoch])

    monkeypatch.setattr(Judge, "row", row)


@pytest.mark.parametrize("after", [pytest.param(4, marks=pytest.mark.slow), 5, pytest.param(6, marks=pytest.mark.slow)])
def test_patience_and_plateau_also_across_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    script_losses(monkeypatch, [9, 5, 4, 3, 3.5, 3.2, 3.1, 2, 2])
    wanted: dict[str, Any] = {"schedule": "plateau", "patience": 3}
    epochs: list[dict[str, np.ndarray]] = []
    model = tiny_model()
    training = tiny_training(
        tmp_path / "a", one_phase(8), model=model, on_epoch=lambda h: epochs.append(weights_of(model)), **wanted
    )
    history = training.run()
    assert [row.epoch for row in history] == [0, 1, 2, 3, 4, 5, 6], "stops after three epochs above 3"
    assert not changed(weights_of(model), epochs[2]) and changed(weights_of(model), epochs[5])
    rates = [row.head_learning_rate for row in history[1:]]
    assert rates == pytest.approx([1e-2] * 5 + [3e-3], rel=1e-6)  # a third after two epochs without a lower loss

    def stop(history: tuple[Epoch, ...]) -> None:
        if len(history) - 1 == after:
            raise KeyboardInterrupt

    resumed = tiny_model()
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "b", one_phase(8), on_epoch=stop, **wanted).run()
    again = tiny_training(tmp_path / "b", one_phase(8), model=resumed, **wanted).run()
    assert timeless(again) == timeless(history)
    assert not changed(weights_of(resumed), weights_of(model))


EVERYTHING: dict[str, Any] = {
    "views": 3,
    "label_smoothing": 0.1,
    "mixup": 0.4,
    "optimizer": {"ema_momentum": 0.9, "clip_norm": 1.0, "weight_decay": 0.05, "l2_sp": 0.01},
    "patience": 2,
}
"""With the dropout of the tiny model and the cosine: all that has a state."""


@contextmanager
def interrupted_at_line(number: int, *modules: str) -> Iterator[list[str]]:
    """Raise KeyboardInterrupt in the main thread as the given line of our code would be run, counted from 1."""
    count, where = 0, []
    files = {str(ROOT / "edgetl" / f"{module}.py") for module in modules}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == number:
                where.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(before)


def lines_run(work: Callable[[], object], *modules: str) -> int:
    """Count the lines of our code that some work takes."""
    count = 0
    files = {str(ROOT / "edgetl" / f"{module}.py") for module in modules}

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line" and frame.f_code.co_filename in files
        return trace if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def photos(tmp_path: Path) -> tuple[StreamedSource, np.ndarray]:
    folder = tmp_path / "photos"
    if not folder.is_dir():
        make_photo_folder(folder, {"cat": 5, "dog": 5, "owl": 4}, size=(SIZE, SIZE))
    examples = data.load(folder)
    return StreamedSource(examples, ImageInput(SIZE, SIZE), 2), examples.labels


def check_interruptions(tmp_path: Path, settings: dict[str, Any], stops: int, seed: int) -> None:
    """Stop one training again and again at random lines; it ends as the one that was never stopped."""
    model = tiny_model()
    modules = ("fine_tuning", "judging", "optimizers", "schedules", "augment", "checkpoints", "trainee")
    history: tuple[Epoch, ...] = ()

    def whole() -> None:
        nonlocal history
        history = tiny_training(tmp_path / "whole.npz", model=model, **settings).run()

    lines = lines_run(whole, *modules)
    assert lines > 500
    rng = np.random.default_rng(seed)
    places = []
    for _ in range(stops):
        # Sections of a third of the training at most, so that all stops fall into it.
        training = tiny_training(tmp_path / "stopped.npz", model=tiny_model(), **settings)
        with interrupted_at_line(int(rng.integers(1, lines // 3)), *modules) as where, pytest.raises(KeyboardInterrupt):
            training.run()
        places += where
    resumed = tiny_model()
    training = tiny_training(tmp_path / "stopped.npz", model=resumed, **settings)
    assert training._found is not None, places
    assert timeless(training.run()) == timeless(history), places
    assert not changed(weights_of(resumed), weights_of(model)), places


@pytest.mark.slow
def test_stopped_at_random_lines_ends_the_same(tmp_path: Path) -> None:
    check_interruptions(tmp_path, EVERYTHING, stops=3, seed=0)


@pytest.mark.slow
def test_streamed_and_augmented_ends_the_same(tmp_path: Path) -> None:
    source, labels = photos(tmp_path)
    settings = {"source": source, "labels": labels, "augment": "light", "schedule": "plateau"}
    check_interruptions(tmp_path, settings, stops=2, seed=1)
    source.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_stopped_at_many_random_lines_ends_the_same(tmp_path: Path, seed: int) -> None:
    check_interruptions(tmp_path, EVERYTHING, stops=5, seed=seed + 10)


def test_a_signal_in_the_middle_of_an_epoch_costs_no_step(tmp_path: Path) -> None:
    class Signalled(PixelSource):
        calls = 0

        def gather(self, rows: np.ndarray, views: np.ndarray) -> tuple[np.ndarray, ...]:
            if threading.current_thread() is not threading.main_thread():
                self.calls += 1
                if self.calls == 17:  # of 30 steps
                    os.kill(os.getpid(), signal.SIGINT)
            return super().gather(rows, views)

    labels = labels_of(42)
    model, resumed = tiny_model(), tiny_model()
    wanted: dict[str, Any] = {"labels": labels, "phases": one_phase(3)}
    history = tiny_training(tmp_path / "a", model=model, **wanted).run()
    with pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "b", source=Signalled(labels), **wanted).run()
    stored = checkpoints.load(tmp_path / "b")
    assert stored is not None
    assert stored.state["epoch"] == 1 and 0 < stored.state["step"] < 10
    again = tiny_training(tmp_path / "b", model=resumed, **wanted).run()
    assert timeless(again) == timeless(history)
    assert not changed(weights_of(resumed), weights_of(model))


KILLED = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_fine_tuning import EVERYTHING
from tiny_training import tiny_training
training = tiny_training(Path(sys.argv[1]), on_epoch=lambda history: print(len(history), flush=True), **EVERYTHING)
print("begin", flush=True)
training.run()
"""


def run_and_kill(checkpoint: Path, lines: int, delay: float, number: signal.Signals) -> None:
    """Train in a process of its own until it has printed some lines; wait, seconds; end it."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, checkpoint], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline(), process.communicate()[1][-2000:]
    time.sleep(delay)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == -number, "it had not ended by itself"


def check_kills(tmp_path: Path, kills: list[tuple[int, float, signal.Signals]]) -> None:
    model, resumed = tiny_model(), tiny_model()
    history = tiny_training(tmp_path / "whole.npz", model=model, **EVERYTHING).run()
    for lines, delay, number in kills:
        run_and_kill(tmp_path / "killed.npz", lines, delay, number)
    again = tiny_training(tmp_path / "killed.npz", model=resumed, **EVERYTHING)
    assert again._found is not None, "there is a checkpoint to go on from"
    assert timeless(again.run()) == timeless(history)
    assert not changed(weights_of(resumed), weights_of(model))


@pytest.mark.slow
def test_a_killed_process_ends_the_same(tmp_path: Path) -> None:
    check_kills(tmp_path, [(2, 0.01, signal.SIGKILL)])


@pytest.mark.slow
def test_processes_killed_at_many_moments_end_the_same(tmp_path: Path) -> None:
    check_kills(tmp_path, [(2, 0.01, signal.SIGKILL), (2, 0.001, signal.SIGINT)])
    rng = np.random.default_rng(0)
    for round_ in range(3):
        folder = tmp_path / str(round_)
        folder.mkdir()
        # After its first line a process still has to trace the graph of the step, which takes a second.
        kills = [(1, float(rng.uniform(0, 0.8)), signal.SIGKILL), (2, float(rng.uniform(0, 0.02)), signal.SIGKILL)]
        check_kills(folder, [(2, float(rng.uniform(0, 0.02)), signal.SIGKILL), *kills])


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    models = [tiny_model() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        tiny_training(tmp_path / f"{number}", one_phase(1), model=model, seed=seed).run()
    first, second, third = map(weights_of, models)
    assert not changed(first, second)
    assert changed(first, third) == paths("two", "three", norms=())


def test_a_damaged_checkpoint_starts_anew_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, anew = tiny_model(), tiny_model()
    file = tmp_path / "c.npz"
    history = tiny_training(file, one_phase(1), model=model).run()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = tiny_training(file, one_phase(1), model=anew).run()
    assert f"{file} is damaged" in caplog.text
    assert timeless(again) == timeless(history)
    assert not changed(weights_of(anew), weights_of(model))


def test_other_pretrained_weights_are_refused_and_another_head_is_not(tmp_path: Path) -> None:
    file = tmp_path / "c.npz"
    with interrupted_at_step(2), pytest.raises(KeyboardInterrupt):
        tiny_training(file, one_phase(1)).run()
    before = file.read_bytes()
    model = tiny_model()
    norm = model.get_layer("one_bn")  # frozen throughout
    norm.moving_mean.assign(norm.moving_mean + 1e-3)
    with pytest.raises(RunError, match=f"{file}: training began with other backbone weights.*--weights.*--out"):
        tiny_training(file, one_phase(1), model=model)
    assert file.read_bytes() == before
    model = tiny_model()
    head = model.get_layer("probabilities")
    head.kernel.assign(head.kernel + 1e-3)
    assert len(tiny_training(file, one_phase(1), model=model).run()) == 2


@pytest.mark.parametrize("good", [0, 1])
def test_divergence_is_an_error_and_spares_the_last_good_epoch(tmp_path: Path, good: int) -> None:
    file = tmp_path / "c.npz"
    wild = Phase("wild", ("two", "three"), 2, 1e25, 1e25, 1.0)
    phases = (*one_phase(1), wild)[1 - good :]
    with pytest.raises(ConfigError, match=r"training diverged: .* \(wild, epoch 1.*--head-lr"):
        tiny_training(file, phases, optimizer={"name": "sgd"}).run()
    stored = checkpoints.load(file)
    if good:
        assert stored is not None
        assert (stored.state["phase"], stored.state["epoch"]) == (0, 1)
        assert all(np.isfinite(array).all() for array in stored.group("weights"))
    else:
        assert stored is None and not file.exists()


@pytest.mark.parametrize("precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow), "mixed_float16"])
def test_mixed_precision_ends_in_float32(tmp_path: Path, precision: Any) -> None:
    model, resumed = tiny_model(), tiny_model()
    before = weights_of(model)
    training = tiny_training(tmp_path / "a", one_phase(2), model=model, precision=precision, **EVERYTHING)
    assert training._model.get_layer("two_conv").compute_dtype == precision.removeprefix("mixed_")
    history = training.run()
    assert changed(before, weights_of(model)) == paths("two", "three", norms=())
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    assert model(np.zeros((1, SIZE, SIZE, 3), np.float32)).dtype == "float32"
    assert all(np.isfinite(weight).all() for weight in model.get_weights())
    assert history[-1].fit_loss < history[0].fit_loss
    with interrupted_at_step(4), pytest.raises(KeyboardInterrupt):
        tiny_training(tmp_path / "b", one_phase(2), precision=precision, **EVERYTHING).run()
    again = tiny_training(tmp_path / "b", one_phase(2), model=resumed, precision=precision, **EVERYTHING).run()
    assert timeless(again) == timeless(history)
    assert not changed(weights_of(resumed), weights_of(model))


@contextmanager
def interrupted_at_step(number: int) -> Iterator[None]:
    """Raise KeyboardInterrupt after so many steps, before anybody has counted the last one."""
    original, count = fine_tuning._Steps.on_train_batch_end, 0

    def stop(self: Any, batch: int, logs: Any = None) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        original(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fine_tuning._Steps, "on_train_batch_end", stop)
        yield


REPLICAS = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import pytest
from test_fine_tuning import interrupted_at_step
from tiny_training import *
out = Path(sys.argv[1])
for dropout, settings in ((0.0, {}), (0.2, {"mixup": 0.4, "augment": "flips", "batch_norm": "recalibrate"})):
    one, two, again = (tiny_model(dropout) for _ in range(3))
    before = weights_of(one)
    name = str(len(settings))
    plain = tiny_training(out / f"one{name}", model=one, **settings).run()
    shared = tiny_training(out / f"two{name}", model=two, distribute=True, **settings).run()
    with interrupted_at_step(8), pytest.raises(KeyboardInterrupt):
        tiny_training(out / f"again{name}", model=tiny_model(dropout), distribute=True, **settings).run()
    resumed = tiny_training(out / f"again{name}", model=again, distribute=True, **settings).run()
    assert timeless(shared) == timeless(resumed)
    assert not changed(weights_of(two), weights_of(again))
    assert changed(before, weights_of(two)) == changed(before, weights_of(one))
    if not settings:
        apart = max(np.abs(weights_of(one)[path] - weights_of(two)[path]).max() for path in before)
        moved = max(np.abs(weights_of(one)[path] - before[path]).max() for path in before)
        print(apart, moved)
        # Twelve steps; sums in another order, float32 rounding of 6e-8, which Adam enlarges where gradients are small.
        assert apart < 1e-4 * moved, (apart, moved)
"""


@pytest.mark.slow
def test_two_devices_share_each_batch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", REPLICAS, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def test_one_device_can_share_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--distribute: found 1 device"):
        tiny_training(tmp_path / "c.npz", distribute=True)


def test_a_photo_that_vanishes_is_named_and_can_be_restored(tmp_path: Path) -> None:
    source, labels = photos(tmp_path)
    victim = source._examples.items[3].path
    content = victim.read_bytes()
    wanted: dict[str, Any] = {"labels": labels, "phases": one_phase(3), "augment": "flips", "batch_size": 7}
    whole, restored = tiny_model(), tiny_model()
    tiny_training(tmp_path / "a", source=source, model=whole, **wanted).run()
    with pytest.raises(DatasetError, match=f"{victim}: can't be read any more"):
        tiny_training(tmp_path / "b", source=source, on_epoch=lambda h: victim.unlink(), **wanted).run()
    victim.write_bytes(content)
    stored = checkpoints.load(tmp_path / "b")
    assert stored is not None and stored.state["epoch"] == 1
    tiny_training(tmp_path / "b", source=source, model=restored, **wanted).run()
    assert not changed(weights_of(whole), weights_of(restored))
    source.close()


@pytest.mark.slow
def test_epochs_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traces, levels = [0], []
    original = Trainee.train_step

    def counted(self: Trainee, data: Any) -> Any:
        traces[0] += 1
        return original(self, data)

    monkeypatch.setattr(Trainee, "train_step", counted)

    def level(history: tuple[Epoch, ...]) -> None:
        if len(history) not in (4, 13):
            return
        gc.collect()
        objects = gc.get_objects()
        datasets = sum(type(each).__name__.endswith("Dataset") for each in objects)
        levels.append((traces[0], datasets, len(list(Path("/proc/self/task").iterdir())), len(objects)))

    tiny_training(tmp_path / "c.npz", one_phase(12), on_epoch=level).run()
    (traces_, datasets, tasks, objects), later = levels
    assert traces_ == later[0] == 1, "one graph for all epochs of a phase"
    assert later[1] <= datasets
    assert later[2] <= tasks + 2  # pools of TensorFlow may still grow to their size
    assert later[3] - objects < 9 * 50  # a row of the history and the like per epoch


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def tasks() -> int:
        gc.collect()
        return len(list(Path("/proc/self/task").iterdir()))

    levels = []
    for _ in range(3):
        with interrupted_at_step(2), pytest.raises(KeyboardInterrupt):
            tiny_training(tmp_path / "d.npz", one_phase(9)).run()
        levels.append(tasks())
    assert levels[2] <= levels[0] + 2  # see above


def test_balanced_and_larger_batches_than_photos(tmp_path: Path) -> None:
    labels = np.array([0] * 9 + [1] * 3 + [2])
    model = tiny_model()
    before = weights_of(model)
    training = tiny_training(
        tmp_path / "c", one_phase(1), model=model, labels=labels, batch_size=64, sampling="balanced"
    )
    history = training.run()
    assert changed(before, weights_of(model)) == paths("two", "three", norms=())
    assert history[1].images_per_second * history[1].seconds == pytest.approx(13)


def test_the_range_test_gives_the_loss_of_each_step_alone(tmp_path: Path) -> None:
    rates = np.full(6, 1e-30)
    training = tiny_training(tmp_path / "c", one_phase(1), model=tiny_model(0.0), schedule="plateau", batch_size=7)
    losses = training.range_test(rates)
    # Nothing moves, and two batches make an epoch: pairs of losses have the mean loss of all photos.
    pairs = np.reshape(losses, (3, 2))
    assert pairs.mean(axis=1) == pytest.approx(np.full(3, pairs.mean()), rel=1e-5)
    assert np.ptp(losses) > 1e-3


def test_features_cannot_be_cut(tmp_path: Path) -> None:
    features = keras.Input((8,))
    model = keras.Model(features, keras.layers.Dense(CLASSES, activation="softmax")(features))
    with pytest.raises(ConfigError, match="--cutmix: features have no places to cut"):
        tiny_training(tmp_path / "c", one_phase(thawed=()), model=model, cutmix=1.0)


def test_blocks_in_front_of_the_border_cannot_be_thawed(tmp_path: Path) -> None:
    whole = tiny_model()
    border = keras.Input(whole.get_layer("two_conv").output.shape[1:])
    x = border
    for layer in whole.layers[whole.layers.index(whole.get_layer("two_bn")) :]:
        x = layer(x)
    with pytest.raises(ValueError, match=r"It lacks: \['two'\]"):
        tiny_training(tmp_path / "c", model=keras.Model(border, x))
    assert BLOCKS[1].name == "two"
