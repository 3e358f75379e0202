"""Latency reports: complete, round-trip, written where they belong; and one-line errors."""

import dataclasses
import hashlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_tflite import tiny

from benchmarks import latency
from edgetl.config import command, from_json, to_json
from edgetl.errors import ArtifactError, ConfigError
from export import benchmark
from export.artifacts import artifact_files
from export.benchmark import Config, LatencyReport

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    (tmp_path / "export/float32.tflite").write_bytes(tiny("float32"))
    (tmp_path / "export/int8.tflite").write_bytes(tiny("uint8"))
    return tmp_path


def status(*arguments: object) -> int:
    return command(
        benchmark.main, Config, prog=benchmark.PROG, show=benchmark.show, argv=[str(each) for each in arguments]
    )


def report(runs_ms: tuple[float, ...], threads: int = 1) -> LatencyReport:
    return LatencyReport(
        path="int8.tflite",
        scheme="int8",
        sha256="0" * 64,
        size_bytes=1_234_567,
        threads=threads,
        kernels="xnnpack",
        warmup=20,
        load_ms=3.0,
        first_ms=2.0,
        runs_ms=runs_ms,
        device="a board",
        cores=2,
        versions={"runtime": "ai-edge-litert 2.3.0"},
    )


def test_run_gets_one_report_beside_each_artifact(run: Path) -> None:
    reports = benchmark.main(Config(run, runs=23, warmup=2))
    assert [each.scheme for each in reports] == ["float32", "int8"]
    for each in reports:
        stored = (run / f"export/{each.scheme}.latency.json").read_text()
        assert from_json(LatencyReport, stored) == each
        assert '"runs_ms"' in stored
        assert "median" not in stored, "only raw measurements are stored"
        content = (run / "export" / each.path).read_bytes()
        assert each.sha256 == hashlib.sha256(content).hexdigest()
        assert each.size_bytes == len(content)
        assert len(each.runs_ms) == 23
        assert min(each.runs_ms) > 0
        assert each.median_ms == statistics.median(each.runs_ms)
        assert each.p10_ms <= each.median_ms <= each.p90_ms
        assert each.versions["runtime"].startswith("ai-edge-litert")
        assert f"{each.cores} core(s)" in each.device
        assert (each.threads, each.kernels, each.warmup) == (1, "xnnpack", 2)
    assert sorted(path.name for path in (run / "export").iterdir()) == [
        "float32.latency.json",
        "float32.tflite",
        "int8.latency.json",
        "int8.tflite",
    ]


def test_artifacts_take_turns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.device import timing

    turns = []
    real = timing.time_invocations

    def spy(model, **numbers):
        turns.append((model.input.dtype, numbers["runs"], numbers["warmup"]))
        return real(model, **numbers)

    monkeypatch.setattr(timing, "time_invocations", spy)
    benchmark.main(Config(run, runs=20, warmup=7))
    timed = turns[2:]  # after the two cold starts
    assert timed[:2] == [("float32", 2, 7), ("uint8", 2, 7)]
    assert timed[2:] == [("float32", 2, 3), ("uint8", 2, 3)] * 9


def test_schemes_choose(run: Path) -> None:
    (only,) = benchmark.main(Config(run, schemes=("int8",), runs=1, warmup=0, kernels="reference", threads=2))
    assert (only.scheme, only.kernels, only.threads, only.runs_ms) == ("int8", "reference", 2, only.runs_ms[:1])
    assert not (run / "export/float32.latency.json").exists()


def test_single_file_writes_only_where_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "export/int8.tflite"
    assert status(file, "--runs", 12, "--warmup", 1) == 0
    printed = capsys.readouterr().out
    assert "int8.tflite" in printed
    assert "12 runs after 1 warm-ups, 1 thread(s), xnnpack kernels, ai-edge-litert" in printed
    assert not list(run.rglob("*.json"))
    assert status(file, "--runs", 12, "--json", run / "out.json") == 0
    assert len(from_json(LatencyReport, (run / "out.json").read_text()).runs_ms) == 12


def test_numbers_derived_from_runs() -> None:
    each = report(tuple(float(n) for n in range(1, 102)))
    assert (each.p10_ms, each.median_ms, each.p90_ms) == (11.0, 51.0, 91.0)
    assert from_json(LatencyReport, to_json(each)) == each
    assert (report((2.5,)).p90_ms, report((2.5,)).noisy) == (2.5, False)


def test_noise_is_named() -> None:
    assert report((10.0, 10.1) * 50).noise == ""
    assert report((10.0,) * 50 + (10.4,) * 50).noise == ""  # 4 % of drift is within what a quiet machine shows
    assert report((10.0,) * 50 + (10.6,) * 50).noise == "second half +6 %"
    assert report((10.0, 10.0, 10.0, 14.0) * 25).noise == "p10 to p90 spans 40 % of the median"
    assert report((10.0,) * 100, threads=4).noise == "4 threads on 2 cores"
    assert report((10.0,) * 100, threads=4).noisy
    assert "noisy: 4 threads" in benchmark.show((report((10.0,) * 100, threads=4),))


def test_errors_are_one_line_and_status_2(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = run / "broken.tflite"
    broken.write_bytes(tiny("uint8")[:-50])
    empty = run / "empty"
    empty.mkdir()
    for arguments, says in [
        ((run / "nowhere",), "no such run or file"),
        ((broken,), "the interpreter refuses it"),
        ((empty,), "no artifacts. Make them with python -m export.convert"),
        ((run, "--schemes", "int4"), "no artifact int4. There: float32, int8"),
        ((run, "--runs", 0), "at least 1 run"),
        ((run, "--threads", 0), "at least 1 run"),
        ((run, "--json", run / "x.json"), "--json is for a single file"),
        ((run / "export/int8.tflite", "--schemes", "int8"), "--schemes chooses among"),
        ((run, "--kernels", "fast"), "--kernels"),
    ]:
        assert status(*arguments) == 2, arguments
        written = capsys.readouterr()
        assert says in written.err
        assert written.err.count("\n") == 1
        assert not written.out
    assert not list(run.rglob("*.json"))


def test_one_damaged_artifact_of_a_run_writes_no_report(run: Path) -> None:
    (run / "export/zzz.tflite").write_bytes(tiny("uint8")[:500])
    with pytest.raises(ArtifactError, match=r"zzz.tflite"):
        benchmark.main(Config(run, runs=1))
    assert not list(run.rglob("*.json"))


def test_artifact_files_come_in_the_order_asked_for_and_once(run: Path) -> None:
    chosen = artifact_files(run / "export", ("int8", "float32", "int8"))
    assert [path.stem for path in chosen] == ["int8", "float32"]


def test_help_is_instant_and_loads_no_tensorflow() -> None:
    code = (
        "import sys\nfrom export.benchmark import *\n"
        "try: command(main, Config, prog=PROG, argv=['--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'tensorflow', 'keras', 'ai_edge_litert'} & set(sys.modules)))"
    )
    start = time.process_time(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--warmup" in done.stdout
    assert done.stdout.strip().endswith("HEAVY []")
    assert time.perf_counter() - start[1] < 10  # a second when idle; the imports above are the real test


def test_our_medians_stand_between_two_of_theirs() -> None:
    each = latency.Comparison("x", ours_ms=(2.0, 4.0), theirs_ms=(1.0, 4.0, 1.0))
    assert each.ratios == (1.0, 2.0)
    assert each.ratio == 1.5
    assert "more than 3 % apart" in latency.show((each,))


def test_comparison_with_litert_benchmark_runs(run: Path) -> None:
    files = (run / "export/int8.tflite",)
    (each,) = latency.main(latency.Config(files, rounds=1, runs=5, warmup=1))
    assert each.path == "int8.tflite"
    assert (len(each.ours_ms), len(each.theirs_ms)) == (1, 2)
    with pytest.raises(ArtifactError, match="No such file"):
        latency.our_median_ms(run / "none.tflite", latency.Config())
    with pytest.raises(ArtifactError, match="litert-benchmark ended with status 1"):
        latency.their_median_ms(run / "none.tflite", latency.Config())
    with pytest.raises(ConfigError):
        latency.main(dataclasses.replace(latency.Config(), rounds=0))
