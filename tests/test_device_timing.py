"""Raw measurements: as many as asked for, of invocations alone."""

import time

import pytest
from tiny_tflite import tiny

from export.device.errors import DeviceError
from export.device.interpreter import Model
from export.device.timing import cold_start, time_invocations


def test_counts_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(tiny("uint8"))
    calls = []
    invoke, set_input = model.invoke, model.set_input
    monkeypatch.setattr(model, "invoke", lambda: (calls.append("invoke"), time.sleep(0.01), invoke()))
    monkeypatch.setattr(model, "set_input", lambda p: (calls.append("set"), time.sleep(0.2), set_input(p)))
    timing = time_invocations(model, warmup=3, runs=5)
    assert calls == ["set"] + ["invoke"] * 8, "pixels are set once, before the clock runs"
    assert timing.warmup == 3
    assert len(timing.runs_ms) == 5
    # A sleep never ends early; its lateness on a busy machine stays far below the 200 ms of set_input.
    assert all(10 <= ms < 150 for ms in timing.runs_ms)


def test_min_seconds_goes_beyond_runs() -> None:
    timing = time_invocations(Model(tiny("uint8")), warmup=0, runs=1, min_seconds=0.05)
    assert len(timing.runs_ms) > 10
    assert sum(timing.runs_ms[:-1]) < 50 <= sum(timing.runs_ms)


def test_same_seed_same_pixels() -> None:
    model = Model(tiny("float32"))
    outputs = []
    for seed in (0, 0, 1):
        time_invocations(model, warmup=0, runs=1, seed=seed)
        outputs.append(model.scores().tolist())
    assert outputs[0] == outputs[1] != outputs[2]


def test_cold_start() -> None:
    model, cold = cold_start(tiny("uint8"), threads=2, kernels="builtin")
    assert (model.threads, model.kernels) == (2, "builtin")
    assert cold.load_ms > 0
    assert cold.first_ms > 0


@pytest.mark.parametrize("numbers", [{"warmup": -1, "runs": 1}, {"warmup": 0, "runs": 0}])
def test_numbers_out_of_range(numbers: dict) -> None:
    with pytest.raises(DeviceError, match="need warmup >= 0 and runs >= 1"):
        time_invocations(Model(tiny()), **numbers)
