"""Latency reports: complete, round-trip, written where they belong; and one-line errors."""

import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_tflite import tiny

from benchmarks import latency
from edgetl.config import command, from_json
from edgetl.errors import ArtifactError, ConfigError
from edgetl.rundir import RunDir, read_json
from export import benchmark, trial
from export import report as export_report
from export.artifacts import artifact_files
from export.benchmark import Config
from export.device.latency import LatencyReport
from export.device.telemetry import Surroundings
from export.flatbuffer import pack, unpack

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


def test_run_gets_one_report_beside_each_artifact(run: Path) -> None:
    reports = benchmark.main(Config(run, runs=23, warmup=2))
    assert [each.circumstances.file for each in reports] == ["float32.tflite", "int8.tflite"]
    for each in reports:
        found = each.circumstances
        path = run / "export" / found.file
        stored = path.with_suffix(".latency.json").read_text()
        assert read_json(LatencyReport, path.with_suffix(".latency.json")) == each
        assert '"runs_ms"' in stored
        assert "median" not in stored, "only raw measurements are stored"
        content = path.read_bytes()
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert found.size_bytes == len(content)
        assert (len(each.runs_ms), len(each.warmup_ms)) == (23, 2)
        assert min(each.first_ms, *each.warmup_ms, *each.runs_ms) > 0
        assert each.median_ms == statistics.median(each.runs_ms)
        assert each.p5_ms <= each.p10_ms <= each.median_ms <= each.p90_ms <= each.p99_ms
        assert found.runtime.startswith("ai-edge-litert")
        assert f"{found.device.cores} core(s)" in str(found.device)
        assert (found.threads, found.kernels, each.energy) == (1, "xnnpack", None)
    assert sorted(path.name for path in (run / "export").iterdir()) == [
        "float32.latency.json",
        "float32.tflite",
        "int8.latency.json",
        "int8.tflite",
    ]


def test_schemes_choose(run: Path) -> None:
    (only,) = benchmark.main(Config(run, schemes=("int8",), runs=1, warmup=0, kernels="reference", threads=2))
    found = only.circumstances
    assert (found.file, found.kernels, found.threads) == ("int8.tflite", "reference", 2)
    assert (len(only.runs_ms), only.warmup_ms) == (1, ())
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


def test_noise_is_shown(run: Path) -> None:
    (made,) = benchmark.main(Config(run / "export/int8.tflite", runs=5, warmup=2))
    crowded = dataclasses.replace(made, circumstances=dataclasses.replace(made.circumstances, threads=999))
    assert crowded.noise.startswith("999 threads on ")
    assert "noisy: 999 threads" in benchmark.show((crowded,))


def test_reports_of_an_earlier_version_are_refused_in_one_line(
    run_copy: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {
        "path": "int8.tflite",
        "scheme": "int8",
        "sha256": "0" * 64,
        "size_bytes": 1,
        "threads": 1,
        "kernels": "xnnpack",
        "warmup": 20,
        "load_ms": 1.0,
        "first_ms": 1.0,
        "runs_ms": [1.0, 2.0],
        "device": "a board",
        "cores": 2,
        "versions": {},
        "schema_version": 1,
    }
    path = run_copy.export_path / "int8.latency.json"
    path.write_text(json.dumps(old))
    argv = [str(run_copy.path)]
    assert command(export_report.main, export_report.Config, prog="report", show=export_report.show, argv=argv) == 2
    written = capsys.readouterr().err
    assert str(path) in written
    assert "schema_version 1, this edgetl reads 2. Make the file again" in written
    assert written.count("\n") == 1


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


def crashing() -> bytes:
    """A well-formed model that asks for a custom operator of the runtime, and says nothing of what that reads first."""
    from ai_edge_litert import schema_py_generated as schema

    model = unpack(tiny())
    for code in model.operatorCodes:
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = b"TFLite_Detection_PostProcess"
    return bytes(pack(model))


def test_what_crashes_the_interpreter_is_named_and_nothing_is_written(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "export/bad.tflite").write_bytes(crashing())
    assert status(run) == 2
    written = capsys.readouterr()
    assert f"{run / 'export/bad.tflite'}: the interpreter crashed (SIG" in written.err
    assert written.err.count("\n") == 1 and not list(run.rglob("*.json"))


def test_what_hangs_in_the_interpreter_is_given_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "PATIENCE_S", 0.01)
    with pytest.raises(ArtifactError, match=r"float32\.tflite: the interpreter was not done after 0\.02 s in a trial"):
        benchmark.main(Config(run, runs=1))


def test_one_damaged_artifact_of_a_run_writes_no_report(run: Path) -> None:
    (run / "export/zzz.tflite").write_bytes(tiny("uint8")[:500])
    with pytest.raises(ArtifactError, match=r"zzz.tflite"):
        benchmark.main(Config(run, runs=1))
    assert not list(run.rglob("*.json"))


def test_artifact_files_come_in_the_order_asked_for_and_once(run: Path) -> None:
    chosen = artifact_files(run / "export", ("int8", "float32", "int8"))
    assert [path.stem for path in chosen] == ["int8", "float32"]


def test_a_pipe_is_not_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(run / "export/pipe.tflite")
    assert [path.stem for path in artifact_files(run / "export")] == ["float32", "int8"]
    assert status(run / "export/pipe.tflite", "--runs", "1") == 2
    assert f"{run / 'export/pipe.tflite'}: not a regular file" in capsys.readouterr().err


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
    assert "more than 3 % apart" in latency.show(latency.Findings((each,), ()))


def test_pairs_that_differ_count_only_where_neither_run_was_called_noisy(run: Path) -> None:
    (made,) = benchmark.main(Config(run / "export/int8.tflite", runs=1, warmup=0))
    calm = dataclasses.replace(made.surroundings, others=0.0)
    busy = dataclasses.replace(made.surroundings, others=0.9)

    def took(ms: float, around: Surroundings) -> LatencyReport:
        return dataclasses.replace(made, runs_ms=(ms,), surroundings=around)

    pairs = ((took(10, calm), took(11, busy)), (took(11, calm), took(10, calm)), (took(10, calm), took(10.2, calm)))
    found = latency.Repetition("x", pairs)
    assert found.gaps == pytest.approx((0.1, 0.1, 0.02))
    assert found.quiet_gaps == pytest.approx((0.1, 0.02))
    assert latency.show(latency.Findings((), (found,))).endswith("1 more than 5 % apart and not called noisy")


def test_comparison_with_litert_benchmark_runs(run: Path) -> None:
    files = (run / "export/int8.tflite",)
    found = latency.main(latency.Config(files, rounds=1, runs=5, seconds=0.01, warmup=1, pairs=1))
    (each,), (again,) = found.comparisons, found.repetitions
    assert each.path == again.path == "int8.tflite"
    assert (len(each.ours_ms), len(each.theirs_ms), len(again.gaps)) == (1, 2, 1)
    with pytest.raises(ArtifactError, match="No such file"):
        latency.our_report(run / "none.tflite", latency.Config())
    with pytest.raises(ArtifactError, match="litert-benchmark ended with status 1"):
        latency.their_median_ms(run / "none.tflite", latency.Config())
    with pytest.raises(ConfigError):
        latency.main(dataclasses.replace(latency.Config(), runs=0))


def test_an_artifact_that_is_not_the_described_one_is_not_timed(
    run_copy: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy.export_path / "int8.tflite"
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    before = (run_copy.export_path / "int8.latency.json").read_bytes()
    assert status(run_copy.path, "--schemes", "int8", "--runs", 1) == 2
    assert "int8.tflite: expected sha256" in capsys.readouterr().err
    assert (run_copy.export_path / "int8.latency.json").read_bytes() == before
