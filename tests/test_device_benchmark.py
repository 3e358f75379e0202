"""The device program's `benchmark`: figures derived from measurements, noise named, options checked."""

import dataclasses
import hashlib
import io
import json
import re
import statistics
import sys
from pathlib import Path

import pytest
from tiny_tflite import mean

from edgetl.config import from_json, to_json
from edgetl.errors import ConfigError
from export.device import benchmark
from export.device.benchmark import BenchmarkReport, default_threads, shown
from export.device.cli import main
from export.device.contents import Bundle, Figure
from export.device.energy import Energy
from export.device.host import Host
from export.device.latency import LatencyReport, Subject, measure
from export.device.outcome import Circumstances
from export.device.outputs import Outputs
from export.device.telemetry import Memory, Surroundings, Telemetry

MB = 1_000_000
SILENT = Telemetry(None, None, (), None)
STEADY = (10.0, 10.1) * 50
MEMORY = Memory(60 * MB, 20 * MB)


def report(
    runs_ms: tuple[float, ...] = STEADY,
    *,
    threads: int = 1,
    curve: tuple[float, ...] = (20.0, *[10.0] * 20),
    others: float | None = 0.01,
    before: Telemetry = SILENT,
    after: Telemetry = SILENT,
    energy: Energy | None = None,
    memory: Memory = MEMORY,
) -> LatencyReport:
    return LatencyReport(
        circumstances=Circumstances(
            file="int8.tflite",
            sha256="0" * 64,
            size_bytes=1_234_567,
            threads=threads,
            kernels="xnnpack",
            kernels_used="xnnpack",
            runtime="ai-edge-litert 2.3.0",
            device=Host("a board", 2, "Linux 6 aarch64", "3.9.2"),
            versions={"python": "3.9.2", "numpy": "1.26.4"},
            time="2025-01-01T00:00:00+00:00",
        ),
        load_ms=3.0,
        first_ms=curve[0],
        warmup_ms=curve[1:],
        runs_ms=runs_ms,
        memory=memory,
        surroundings=Surroundings(1.0, others, before, after),
        energy=energy,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    content, score = mean("uint8"), Figure("top-1", 0.8, 0.7, 0.9, 100)
    (tmp_path / "int8.tflite").write_bytes(content)
    said = Bundle(
        scheme="int8",
        model="int8.tflite",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        inputs={"kind": "image", "height": 12, "width": 12, "resize": "stretch"},
        input_type="uint8",
        input_scale=1.0,
        input_zero_point=0,
        outputs=Outputs("classification", ("a", "b", "c"), (), ()),
        output_type="uint8",
        output_scale=1.0,
        output_zero_point=0,
        float32=score,
        host=score,
        latency=None,
        targets={},
        run_sha256="0" * 64,
        files={},
        versions={},
    )
    (tmp_path / "bundle.json").write_text(json.dumps(dataclasses.asdict(said)))
    return tmp_path


def test_figures_derived_from_runs() -> None:
    each = report(tuple(float(n) for n in range(1, 102)))
    assert (each.p5_ms, each.p10_ms, each.median_ms, each.p90_ms, each.p99_ms) == (6.0, 11.0, 51.0, 91.0, 100.0)
    single = report((2.5,))
    assert (single.p5_ms, single.median_ms, single.p99_ms, single.noise) == (2.5, 2.5, 2.5, "")


def test_every_reason_for_noise() -> None:
    heat = Telemetry(85.0, 600.0, ("throttled",), None)
    for each, noise in [
        (report(), ""),
        (report(others=None), ""),
        (report(threads=2), ""),
        (report(threads=4), "4 threads on 2 cores"),
        (report((10.0,) * 50 + (10.2,) * 50), ""),
        (report((10.0,) * 50 + (10.3,) * 50), "second half +3 %"),
        (report((10.0,) * 50 + (9.7,) * 50), "second half -3 %"),
        (report((10.0, 10.0, 10.0, 10.0, 14.0) * 20), ""),  # a fifth of them can't move the median
        (report((10.0, 10.0, 11.0) * 40), "the middle half spans +0 to +10 % of the median"),
        (report((9.0, 10.0, 10.0) * 40), "the middle half spans -10 to +0 % of the median"),
        (report(others=0.3), "others took 30 % of the processor"),
        (report(after=heat), "the processor slowed itself down (throttled)"),
        (report(threads=4, others=0.3), "4 threads on 2 cores; others took 30 % of the processor"),
    ]:
        assert (each.noise, each.noisy) == (noise, bool(noise))


def test_warm_up_in_words() -> None:
    slow = report(curve=(40.0, 20.0, 10.3, *[10.0] * 8))
    assert slow.warm_after == 2
    assert report(curve=(10.0,)).warm_after == 0
    cold = report(curve=(40.0, 30.0))
    assert cold.warm_after is None
    lines = shown(BenchmarkReport(100.0, (slow, cold)))
    begin, of = "warm-up, 1 thread(s): first 40.00", "median 10.05 ms; within 5 % of the median"
    assert f"{begin}, tenth 10.00, {of} after 2 invocation(s)" in lines
    assert f"{begin}, {of} not yet after 2 invocation(s)" in lines


def test_table_and_what_is_below_it() -> None:
    before, after = Telemetry(45.2, 600.0, (), 1), Telemetry(61.9, 1800.0, (), 1)
    energy = Energy(seconds=2.0, inferences=200, joules=3.0, idle_watts=0.5, readings_per_s=95.2)
    reports = tuple(report(threads=n, before=before, after=after, energy=energy) for n in (1, 4))
    assert shown(BenchmarkReport(280.0, reports)) == [
        "threads  load ms  first ms  median ms      p5     p90     p99  images/s     mJ  above idle",
        "1            3.0     20.00     10.050  10.000  10.100  10.100      99.5  15.00       10.00",
        "4            3.0     20.00     10.050  10.000  10.100  10.100      99.5  15.00       10.00",
        "int8.tflite, xnnpack kernels, ai-edge-litert 2.3.0, Python 3.9.2, a board, 2 core(s), Linux 6 aarch64",
        "cold start: 303 ms (import 280, load 3.0, first image 20.0); Python's own start comes before",
        "warm-up, 1 thread(s): first 20.00, tenth 10.00, median 10.05 ms; "
        "within 5 % of the median after 1 invocation(s)",
        "warm-up, 4 thread(s): first 20.00, tenth 10.00, median 10.05 ms; "
        "within 5 % of the median after 1 invocation(s)",
        "memory: peak 60 MB, of which the model took 20 MB",
        "processor: 45 -> 62 C, 600 -> 1800 MHz",
        "mJ per image: all that is behind the meter (power read 95 times a second); above idle: without the 0.50 W of "
        "doing nothing",
        "noisy, 4 thread(s): 4 threads on 2 cores",
    ]


def test_what_is_not_told_is_not_shown() -> None:
    text = "\n".join(shown(BenchmarkReport(1.0, (report(memory=Memory(None, None)),))))
    assert not re.search("memory|processor|energy|mJ|None|noisy", text)


@pytest.mark.parametrize(("cores", "threads"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2, 4]), (12, [1, 2, 4, 8])])
def test_default_threads(cores: int, threads: list[int]) -> None:
    assert default_threads(cores) == threads


def test_command_measures_and_writes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meter = bundle / "power1_input"
    meter.write_text("2000000\n")
    options = ["--threads", "2", "1", "2", "--runs", "12", "--warmup", "3", "--seconds", "0.01", "--meter", str(meter)]
    assert main(["benchmark", "--bundle", str(bundle), *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == "", "no progress where nobody watches"
    found = from_json(BenchmarkReport, (bundle / "reports/benchmark.json").read_bytes())
    assert [each.circumstances.threads for each in found.latencies] == [2, 1]
    assert (found.command, found.schema_version) == ("benchmark", 1)
    assert "median" not in to_json(found), "only raw measurements are stored"
    for each, line in zip(found.latencies, captured.out.splitlines()[1:], strict=False):
        assert len(each.warmup_ms) == 3
        assert len(each.runs_ms) >= 12
        assert sum(each.runs_ms) >= 10 - 1e-6  # sums of milliseconds round
        assert each.circumstances.sha256 == hashlib.sha256(mean("uint8")).hexdigest()
        shown_median = float(line.split()[3])
        assert shown_median == pytest.approx(statistics.median(each.runs_ms), abs=0.0005)  # three decimals
        assert float(line.split()[7]) == pytest.approx(1000 / each.median_ms, abs=0.05)  # one decimal
        assert each.energy and each.energy.inferences > 0
        assert each.energy.joules == pytest.approx(2 * each.energy.seconds)
        assert each.energy.idle_watts == pytest.approx(2)
    assert found.cold_ms > found.import_ms


def test_host_and_device_make_the_same_report(bundle: Path) -> None:
    """What the device writes with the standard library, the host reads with checks of every field."""
    (made,) = measure([Subject(bundle / "int8.tflite")], runs=5, warmup=2)
    assert from_json(LatencyReport, json.dumps(dataclasses.asdict(made))) == made
    assert from_json(LatencyReport, to_json(made)) == made
    metered = report(energy=Energy(1.0, 3, 2.0, 0.5, None))
    assert from_json(LatencyReport, json.dumps(dataclasses.asdict(metered))) == metered


def test_progress_where_somebody_watches(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["benchmark", "--bundle", str(bundle), "--threads", "1", "--runs", "20", "--seconds", "0"]) == 0
    written = sys.stderr.getvalue()
    assert written.startswith("\r0 of 20 invocations\r2 of 20 invocations")
    assert "\r20 of 20 invocations\r" in written
    assert written.endswith(" \r") and "\n" not in written, "the line is wiped at the end"


def test_ctrl_c_is_one_line_and_writes_nothing(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", interrupted)
    assert main(["benchmark", "--bundle", str(bundle)]) == 130
    assert capsys.readouterr().err.count("\n") == 1
    assert not (bundle / "reports").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--threads", "0"], "--threads 0 --runs 200 --warmup 20 --seconds 2.0: need at least 1 thread"),
        (["--threads", "two"], "argument --threads: invalid int value"),
        (["--threads"], "expected at least one argument"),
        (["--runs", "0"], "need at least 1 thread, 1 run"),
        (["--warmup", "-1"], "0 warm-ups"),
        (["--seconds", "nan"], "--seconds nan: need"),
        (["--seconds", "-1"], "0 seconds"),
        (["--seconds", "inf"], "0 seconds"),
        (["--kernels", "fast"], "argument --kernels: invalid choice"),
        (["--meter", "nowhere/energy_uj"], "nowhere/energy_uj: No such file or directory"),
        (["--meter", "bundle.json"], "not known as a meter"),
        (["--meter", "energy_uj", "--seconds", "0"], "give the meter some seconds"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], says: str
) -> None:
    assert main(["benchmark", "--bundle", str(bundle), *options]) == 2
    written = capsys.readouterr()
    assert says in written.err
    assert written.err.count("\n") == 1
    assert not written.out
    assert not (bundle / "reports").exists()


def test_another_file_than_the_bundle_says(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "int8.tflite").write_bytes(mean("uint8")[:-50])
    assert main(["benchmark", "--bundle", str(bundle)]) == 2
    assert "expected sha256" in capsys.readouterr().err


def test_memory_is_told_of_the_first_alone(tmp_path: Path) -> None:
    # The second interpreter's peak would hold the first one, too.
    path = tmp_path / "mean.tflite"
    path.write_bytes(mean("uint8"))
    first, second = measure([Subject(path), Subject(path, 2)], warmup=0, runs=1)
    assert first.memory.peak_bytes
    assert second.memory == Memory(None, None)


def test_a_report_without_measurements_is_refused() -> None:
    with pytest.raises(ValueError, match="runs_ms is empty"):
        report(runs_ms=())
    text = to_json(report(runs_ms=(1.0,)))
    empty = re.sub(r'"runs_ms": \[[^]]*\]', '"runs_ms": []', text)
    with pytest.raises(ConfigError):
        from_json(LatencyReport, empty)
