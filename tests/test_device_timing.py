"""Raw measurements: as many as asked for, of invocations alone, in turns."""

import time

import pytest
from tiny_tflite import mean

from export.device import timing
from export.device.errors import DeviceError
from export.device.interpreter import Model
from export.device.timing import REWARM, start, take_turns, time_invocations


def test_counts_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(mean("uint8"))
    calls = []
    invoke, set_input = model.invoke, model.set_input
    monkeypatch.setattr(model, "invoke", lambda: (calls.append("invoke"), time.sleep(0.01), invoke()))
    monkeypatch.setattr(model, "set_input", lambda p: (calls.append("set"), time.sleep(0.2), set_input(p)))
    measured = time_invocations(model, warmup=3, runs=5)
    assert calls == ["set"] + ["invoke"] * 8, "pixels are set once, before the clock runs"
    assert (len(measured.warmup_ms), len(measured.runs_ms)) == (3, 5)
    # A sleep never ends early; its lateness on a busy machine stays far below the 200 ms of set_input.
    assert all(10 <= ms < 150 for ms in measured.warmup_ms + measured.runs_ms)


def test_min_seconds_goes_beyond_runs_and_does_not_count_the_warmup() -> None:
    measured = time_invocations(Model(mean("uint8")), warmup=1000, runs=1, min_seconds=0.05)
    assert len(measured.runs_ms) > 10
    assert sum(measured.runs_ms[:-1]) < 50 <= sum(measured.runs_ms) + 1e-6  # sums of milliseconds round


def test_same_seed_same_pixels() -> None:
    model = Model(mean("float32"))
    outputs = []
    for seed in (0, 0, 1):
        time_invocations(model, warmup=0, runs=1, seed=seed)
        outputs.append(model.scores().tolist())
    assert outputs[0] == outputs[1] != outputs[2]


def test_start_holds_the_first_moments_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([0.03, 0.02, 0.0, 0.0])
    real = Model.invoke
    monkeypatch.setattr(Model, "invoke", lambda self: (time.sleep(next(waits)), real(self)))
    begun = start(mean("uint8"), threads=2, kernels="builtin", warmup=3)
    assert next(waits, None) is None, "the first invocation and three of the warm-up"
    assert (begun.model.threads, begun.model.kernels) == (2, "builtin")
    assert begun.load_ms > 0
    assert begun.first_ms >= 30  # a sleep never ends early
    assert len(begun.warmup_ms) == 3
    assert begun.warmup_ms[0] >= 20
    assert begun.memory.peak_bytes and begun.memory.added_bytes is not None
    assert 0 <= begun.memory.added_bytes < begun.memory.peak_bytes


def test_start_checks_the_hash() -> None:
    with pytest.raises(DeviceError, match="expected sha256"):
        start(mean("uint8"), sha256="0" * 64)


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, done = [], []
    real = timing.time_invocations

    def spy(model: Model, **numbers: float) -> timing.Timing:
        turns.append((model.input.dtype, numbers["runs"], numbers["warmup"]))
        return real(model, **numbers)

    monkeypatch.setattr(timing, "time_invocations", spy)
    models = [Model(mean("float32")), Model(mean("uint8"))]
    series = take_turns(models, runs=23, advance=done.append)
    assert turns == [(io, runs, REWARM) for runs in [3, 3, 3, 2, 2, 2, 2, 2, 2, 2] for io in ("float32", "uint8")]
    assert [len(each) for each in series] == [23, 23]
    assert sum(done) == 46
    turns.clear()
    assert [len(each) for each in take_turns(models, runs=2)] == [2, 2], "fewer runs than turns"
    assert len(turns) == 4


@pytest.mark.parametrize("numbers", [{"warmup": -1, "runs": 1}, {"warmup": 0, "runs": 0}])
def test_numbers_out_of_range(numbers: dict) -> None:
    with pytest.raises(DeviceError, match="need warmup >= 0 and runs >= 1"):
        time_invocations(Model(mean()), **numbers)
    with pytest.raises(DeviceError, match="need warmup >= 0 and runs >= 1"):
        take_turns([Model(mean())], runs=0)
