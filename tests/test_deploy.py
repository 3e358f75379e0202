"""A device's figures come home whole or not at all; what goes wrong is one line. With a real sshd: tests/clients."""

import ast
import contextlib
import dataclasses
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from editing import unseal

from edgetl.config import from_json, to_json
from edgetl.errors import ArtifactError, ConfigError, RunError
from edgetl.rundir import RunDir, read_json, sha256_of
from export import android, bundle, deploy, devices, remote, remote_agent, report, ssh
from export.artifacts import find_artifacts
from export.deploy import Config, main
from export.device.contents import read_bundle
from export.ssh import Link, RemoteError

THIS_MACHINE = '#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n'
"""An ssh that reaches no further than this machine."""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory, finished_run: RunDir) -> Path:
    """A run with a bundle; read only."""
    path = tmp_path_factory.mktemp("shipped") / "run"
    shutil.copytree(finished_run.path, path)
    bundle.main(bundle.Config(path, photos=3, web=False))
    return path


@pytest.fixture
def there(shipped: Path, tmp_path: Path) -> Path:
    """A copy of that run that may be written to."""
    shutil.copytree(shipped, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def deployed(shipped: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[deploy.Deployed, Path, Path]:
    """What a deployment found, the run that it is in, and the device's folder; read only."""
    folder = tmp_path_factory.mktemp("deployed")
    run, root = folder / "run", folder / "the device's folder"
    shutil.copytree(shipped, run)
    install(folder / "programs", "ssh", THIS_MACHINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder / 'programs'}:{os.environ['PATH']}")
        return main(settings(run, root, name="Küche 1")), run, root


def install(folder: Path, name: str, text: str) -> Path:
    """Write a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder / name


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are found first."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}:{os.environ['PATH']}")
    return tmp_path / "programs"


def settings(run: Path, root: Path, **changes: object) -> Config:
    given = {"ssh": "pi@board", "python": sys.executable, "remote_dir": str(root), "threads": (1,)}
    return Config(run, **(given | changes))  # type: ignore[arg-type]


def test_ssh_sees_what_the_user_said_and_keeps_its_checks() -> None:
    words = Link("pi@board", 2222, Path(__file__), Path(__file__), "/opt/my python's/python3").arguments()
    assert words[:2] == ["ssh", "-T"] and words[-3:-1] == ["--", "pi@board"]
    assert words[words.index("-p") + 1] == "2222" and words[words.index("-i") + 1] == words[words.index("-F") + 1]
    assert "BatchMode=yes" in words and not any("HostKey" in word or "KnownHosts" in word for word in words)
    # What a POSIX shell makes of the last word: the program as it was given, and one argument.
    split = subprocess.run(["sh", "-c", f"printf '%s\\n' {words[-1]}"], capture_output=True, text=True, check=True)
    assert split.stdout.splitlines() == ["sh", "-c", ssh.LAUNCH, "/opt/my python's/python3", ssh.BOOTSTRAP]


def test_python_in_the_home_directory_there(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "a home"))
    install(tmp_path / "a home", "my python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    install(programs, "ssh", THIS_MACHINE)
    with remote.connected(Link("board", python="~/my python")) as device:
        assert device.python == sys.version_info[:2]


@pytest.mark.parametrize("host", ["-oProxyCommand=touch x", "-v", "pi@", "a b", "pi@bo\nard"])
def test_hosts_that_ssh_must_not_see(shipped: Path, tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="not a host"):
        main(settings(shipped, tmp_path / "device", ssh=host, name="board"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ssh": ""}, "name one device"),
        ({"adb": True}, "name one device"),
        ({"ssh": "", "adb": True}, "--benchmark-model"),
        ({"threads": (0,)}, "--threads 0"),
        ({"wheels": Path(__file__).parent}, "no .whl files"),
        ({"name": "../up"}, "folder's name"),
        ({"name": ".hidden"}, "folder's name"),
        ({"identity": Path("/none")}, "--identity /none: no such file"),
        ({"ssh_config": Path("/none")}, "--ssh-config /none: no such file"),
        ({"port": 0}, "--port 0: expected 1 to 65535"),
        ({"serial": "x"}, "--serial goes with --adb, not with --ssh"),
        ({"ssh": "", "adb": True, "benchmark_model": Path("x")}, "--python goes with --ssh, not with --adb"),
    ],
)
def test_settings_that_cannot_work(shipped: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        main(settings(shipped, tmp_path / "device", **changes))
    assert not (tmp_path / "device").exists()


def test_bundles_that_are_missing_stale_or_changed(there: Path, tmp_path: Path) -> None:
    given = settings(there, tmp_path / "device")
    with pytest.raises(ArtifactError, match=r"no bundle. Make it with python -m export.bundle .* --scheme float32"):
        main(dataclasses.replace(given, scheme="float32"))
    labels = there / "bundles" / "int8" / "labels.txt"
    labels.write_text("other\n")
    with pytest.raises(ArtifactError, match=r"labels.txt: missing or changed since the bundle was made"):
        main(given)
    about = there / "bundles" / "int8" / "bundle.json"
    stale = dataclasses.replace(read_bundle(about.parent), sha256="0" * 64)
    about.write_text(to_json(stale))
    with pytest.raises(ArtifactError, match=r"made of another file than int8.tflite is now"):
        main(given)
    with pytest.raises(RunError):
        main(dataclasses.replace(given, run=tmp_path / "none"))


def test_figures_come_home_into_report_and_table(deployed: tuple[deploy.Deployed, Path, Path]) -> None:
    done, run, root = deployed
    assert deploy.status(done) == 0 and "PASSED" in deploy.show(done)
    (copied,) = root.iterdir()
    kept = {path.relative_to(copied).parts[0] for path in copied.rglob("*") if path.is_file()}
    assert kept == {"bundle.json", "int8.tflite", "labels.txt", "edgetl-device.pyz", "sample", "reports"}
    made = report.main(report.Config(run))
    assert made.devices == (done.row,) and made.schema_version == 4
    assert from_json(report.Report, (run / "report.json").read_bytes()) == made
    (found,) = done.row.latencies
    series = json.loads((done.folder / "benchmark.json").read_bytes())["latencies"][0]["runs_ms"]
    assert min(series) <= found.median_ms <= found.p90_ms <= max(series)  # type: ignore[operator]
    here, there = [line.partition(" int8 ") for line in report.show(made).splitlines() if " int8 " in line][-2:]
    assert (here[0].strip(), there[0].strip()) == ("(this machine)", "Küche 1")
    assert there[2].split()[-5:-1] == ["1", *(f"{ms:.2f}" for ms in (found.median_ms, found.p90_ms, found.mean_ms))]
    (row,) = [row for row in made.artifacts if row.scheme == "int8"]
    assert here[2].split()[-4:] == [f"{row.latency_ms_median:.2f}", f"{row.latency_ms_p90:.2f}", "-", "-"]


def test_reports_on_another_file_are_refused(deployed: tuple[deploy.Deployed, Path, Path], tmp_path: Path) -> None:
    done, original, _ = deployed
    run = tmp_path / "run"
    shutil.copytree(original, run)
    artifacts = find_artifacts(RunDir(run))
    for name in devices.COMMANDS:
        path = run / done.folder.relative_to(original) / f"{name}.json"
        text = path.read_text()
        unseal(path, done.row.sha256, "0" * 64)
        with pytest.raises(ArtifactError, match=rf"{name}.json: about another file than int8.tflite is now"):
            devices.device_rows(RunDir(run), artifacts)
        path.unlink()
        with pytest.raises(RunError, match=rf"{name}.json: missing"):
            devices.device_rows(RunDir(run), artifacts)
        path.write_text(text)
    assert devices.device_rows(RunDir(run), artifacts) == (done.row,)


def test_check_that_fails_is_exit_status_1(deployed: tuple[deploy.Deployed, Path, Path]) -> None:
    done, _, _ = deployed
    failed = dataclasses.replace(done, row=dataclasses.replace(done.row, passed=False))
    assert deploy.status(failed) == 1 and "FAILED" in deploy.show(failed)


SAID = [
    ("ssh: Could not resolve hostname board: Name or service not known", "unknown host name"),
    ("ssh: connect to host board port 22: Connection refused", "nothing listens there"),
    ("ssh: connect to host board port 22: Connection timed out", "does not answer"),
    ("ssh: connect to host board port 22: No route to host", "does not answer"),
    ("pi@board: Permission denied (publickey,password).", "does not let you in"),
    ("No ED25519 host key is known for board.\nHost key verification failed.", "host key is unknown here"),
    (
        "@  WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!  @\nOffending RSA key in /home/me/known hosts:3\n"
        "Host key verification failed.",
        "delete /home/me/known hosts:3",
    ),
    ("Idle sessions are timed out.\npi@board: Permission denied (publickey).", "does not let you in"),
    ("kex_exchange_identification: read: Connection reset by peer", "no connection (ssh: kex_exchange"),
]


@pytest.mark.parametrize(("said", "meaning"), SAID)
def test_what_ssh_says_becomes_one_line(programs: Path, said: str, meaning: str) -> None:
    install(programs, "ssh", f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\nexit 255\n")
    with pytest.raises(RemoteError, match=re.escape(meaning)) as caught, remote.connected(Link("pi@board")):
        pass
    assert "\n" not in str(caught.value) and str(caught.value).startswith("pi@board: ")


@pytest.mark.parametrize(
    ("program", "meaning"),
    [
        ("#!/bin/sh\nexit 127\n", "no Python there"),
        ("#!/bin/sh\necho 'edgetl-agent 3.8'; read line\n", "is Python 3.8, the device program needs 3.9"),
        ("#!/bin/sh\necho broken >&2; exit 1\n", "does not work there (broken)"),
        ("#!/bin/sh\necho broken >&2; sleep 20 & echo edgetl-agent ended 127\n", "no Python there as python3 (broken)"),
        ("#!/bin/sh\necho Choose a shell; exec sleep 20\n", "within 0.3 s (last line: Choose a shell)"),
        ("#!/bin/sh\nprintf %02000d 0 >&2; exit 1\n", f"does not work there ({'0' * 300}...)"),
        (None, "no ssh client here"),
    ],
)
def test_devices_without_a_python_that_will_do(
    programs: Path, monkeypatch: pytest.MonkeyPatch, program: str | None, meaning: str
) -> None:
    monkeypatch.setattr(remote, "ENDING_SECONDS", 0.1)
    if program:
        monkeypatch.setattr(remote, "GREETING_SECONDS", 0.3 if "Choose" in program else 20)
        install(programs, "ssh", program)
    else:
        monkeypatch.setenv("PATH", "/nonexistent")
    begin = time.monotonic()
    with pytest.raises(RemoteError, match=re.escape(meaning)), remote.connected(Link("board")):
        pass
    assert time.monotonic() - begin < 10  # some of these sleep for 20 s


def test_login_scripts_may_be_chatty_and_leave_something_running(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ENDING_SECONDS", 0.1)
    later = "(while [ ! -e asked ]; do sleep 0.02; done; echo; echo stray; touch said; sleep 20) &"
    login = f"cd {tmp_path}; echo Welcome; {later} printf 'no newline '; sh -c \"$last\"; wait"
    install(programs, "ssh", THIS_MACHINE.replace('exec sh -c "$last"', login))
    begin = time.monotonic()
    with remote.connected(Link("board", python=sys.executable)) as device:
        assert device.python == sys.version_info[:2]
        wait = "touch asked; until [ -e said ]; do sleep 0.02; done"
        done = device.ask("run", arguments=["sh", "-c", wait], folder=str(tmp_path))
        assert done["status"] == 0
    assert time.monotonic() - begin < 10  # neither the job's 20 s nor the 20 s of patience


def test_agent_runs_on_old_pythons_and_keeps_to_its_folder(programs: Path, tmp_path: Path) -> None:
    tree = ast.parse(inspect.getsource(remote_agent), feature_version=(3, 9))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)
    install(programs, "ssh", THIS_MACHINE)
    for path in ("../up", "/tmp/absolute", "a/../../up"):
        content = remote.Content(path, b"12", 2, "")
        with (
            pytest.raises(RemoteError, match="not a path within a folder"),
            remote.connected(Link("board", python=sys.executable)) as device,
        ):
            device.send(str(tmp_path / "device" / "bundle"), [content], lambda _: None)
    assert not list((tmp_path / "device").iterdir())


def look(device: remote.Remote, root: Path, *, clean: bool = False) -> dict[str, object]:
    return device.ask("look", root=str(root), kinds=deploy.KINDS, bundle="int8-0123456789ab", clean=clean)


@pytest.mark.parametrize("clean", [False, True])
def test_agent_sweeps_its_own_leftovers_only(tmp_path: Path, programs: Path, clean: bool) -> None:
    install(programs, "ssh", THIS_MACHINE)
    home = tmp_path / "home"
    theirs = {".movie.part", ".x.1.part", "int8-mine", "data-0123456789ab"}
    kept = {"int8-0123456789ab", "float32-ba9876543210", "venv-ba9876543210"}
    part = f".int8-0123456789ab.{os.getpid()}.part"  # of a process that is alive: ids come again
    for name in (part, "int8-ba9876543210", "wheels-ba9876543210", *kept, *theirs):
        (home / name).mkdir(parents=True)
    with contextlib.suppress(RemoteError), remote.connected(Link("board", python=sys.executable)) as device:
        look(device, home, clean=clean)
        device.send(str(home / "int8-0123456789ab"), [remote.Content("../up", b"12", 2, "")], lambda _: None)
    assert {path.name for path in home.iterdir()} == (theirs if clean else theirs | kept)


def test_two_deployments_at_once(tmp_path: Path, programs: Path) -> None:
    install(programs, "ssh", THIS_MACHINE)
    link = Link("board", python=sys.executable)
    with remote.connected(link) as first:
        look(first, tmp_path / "home")
        message = r"home: another deployment is running there\. Wait until it ends"
        with pytest.raises(RemoteError, match=message), remote.connected(link) as second:
            look(second, tmp_path / "home", clean=True)
        assert (tmp_path / "home").is_dir()
    with remote.connected(link) as third:
        look(third, tmp_path / "home", clean=True)
    assert not (tmp_path / "home").exists()


def test_remote_folders_that_cannot_be(programs: Path) -> None:
    install(programs, "ssh", THIS_MACHINE)
    message = r"board: ~nosuch/x: no such home directory\. Check it there"
    with (
        pytest.raises(RemoteError, match=message),
        remote.connected(Link("board", python=sys.executable)) as device,
    ):
        look(device, Path("~nosuch/x"))


def test_program_that_crashes_cannot_pass_off_an_old_report(
    deployed: tuple[deploy.Deployed, Path, Path], tmp_path: Path, programs: Path
) -> None:
    done, run, _ = deployed
    install(programs, "ssh", THIS_MACHINE)
    bundle = read_bundle(run / "bundles" / "int8")
    for name in ("check", "benchmark"):
        (tmp_path / "report.json").write_bytes((done.folder / f"{name}.json").read_bytes())
        with remote.connected(Link("board", python=sys.executable)) as device:
            crash = [sys.executable, "-c", "raise ValueError('broken')"]
            found = device.ask("run", arguments=crash, folder=str(tmp_path), report="report.json")
            assert found["status"] == 1
            with pytest.raises(RemoteError, match=rf"board: {name} failed there: ValueError: broken"):
                deploy._report(device, name, found, bundle)
            if name == "benchmark":  # written, but not to the end
                found["report"] = (done.folder / f"{name}.json").read_text()
                with pytest.raises(RemoteError, match="failed there"):
                    deploy._report(device, name, found, bundle)


PIP = """#!/bin/sh
[ "$2" = venv ] && mkdir "$3/bin" && cp "$0" "$3/bin/python" && exit
for last; do :; done
echo "$last" >> {asked}
echo 'ERROR: No matching distribution found for {missing}'
exit 1
"""


@pytest.mark.parametrize(
    ("missing", "asked"),
    [("ai-edge-litert", ["ai-edge-litert", "tflite-runtime"]), ("flatbuffers", ["ai-edge-litert"])],
)
def test_the_older_interpreter_is_for_devices_without_wheels_of_the_newer(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, asked: list[str]
) -> None:
    monkeypatch.setattr(deploy, "REQUIREMENTS", [[name] for name, *_ in deploy.REQUIREMENTS])
    install(programs, "ssh", THIS_MACHINE)
    base = install(programs, "base", PIP.format(asked=tmp_path / "asked", missing=missing))
    start = f"import sys; sys.executable = {str(base)!r}; exec(sys.argv[2])"
    python = install(programs, "python", f"#!{sys.executable}\n{start}\n")
    with (
        pytest.raises(RemoteError, match=f"pip failed there: ERROR: No matching distribution found for {missing}"),
        remote.connected(Link("board", python=str(python))) as device,
    ):
        deploy._make_venv(device, str(tmp_path / "there" / "venv"), "", [], "armv7l")
    assert (tmp_path / "asked").read_text().split() == asked
    assert not list((tmp_path / "there").iterdir())


def agent(folder: Path, changes: dict[str, str], *requests: bytes) -> subprocess.Popen[bytes]:
    """Start an agent with other constants, and ask it for something."""
    process = subprocess.Popen(
        [sys.executable, "-c", ssh.BOOTSTRAP], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder
    )
    assert process.stdin
    source = inspect.getsource(remote_agent)
    for old, new in changes.items():
        assert old in source
        source = source.replace(old, new)
    process.stdin.write(b"%d\n" % len(source.encode()) + source.encode() + b"".join(requests))
    process.stdin.flush()
    return process


def test_agent_ends_with_its_host_and_takes_what_it_started_along(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; sh -c 'echo $$ > grandchild; exec sleep 60' & echo $$ > child; wait; sleep 60"
    request = {"command": "run", "arguments": ["sh", "-c", stubborn], "folder": str(tmp_path)}
    changes = {"PATIENCE_SECONDS = 3": "PATIENCE_SECONDS = 0.2"}
    process = agent(tmp_path, changes, json.dumps(request).encode() + b"\n")
    assert process.stdin
    started = [tmp_path / "child", tmp_path / "grandchild"]
    end = time.monotonic() + 20
    while not all(path.is_file() and path.read_text().strip() for path in started):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.stdin.close()
    assert process.wait(20) == 0
    while any(running(int(path.read_text())) for path in started):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_agent_ends_when_its_host_falls_silent(tmp_path: Path) -> None:
    # Nothing closes these pipes: so it is when a network is cut. That a sign of life is enough: the next test.
    run = {"command": "run", "arguments": ["sh", "-c", "echo $$ > child; exec sleep 60"], "folder": str(tmp_path)}
    receive = {"command": "receive", "folder": str(tmp_path / "bundle"), "files": [["file", 1000, ""]]}
    requests = (json.dumps(run).encode() + b"\n", json.dumps(receive).encode() + b"\n" + bytes(10))
    changes = {"SILENT_SECONDS = 100": "SILENT_SECONDS = 0.6"}
    silent = [agent(tmp_path, changes, request) for request in requests]
    assert [process.wait(10) for process in silent] == [0, 0]
    assert not running(int((tmp_path / "child").read_text()))
    assert {path.name for path in tmp_path.iterdir()} == {"child"}


def test_host_gives_signs_of_life(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(programs, "ssh", THIS_MACHINE)
    monkeypatch.setattr(remote, "PULSE_SECONDS", 0.2)
    source = inspect.getsource(remote_agent).replace("SILENT_SECONDS = 100", "SILENT_SECONDS = 1")
    monkeypatch.setattr(inspect, "getsource", lambda _: source)
    with remote.connected(Link("board", python=sys.executable)) as device:
        assert device.ask("run", arguments=["sleep", "1.2"], folder=str(tmp_path))["status"] == 0


def running(process: int) -> bool:
    """Whether a process is there and not just waiting for its parent to notice its end."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


HEAD = "STARTING!\nGraph: [model.tflite]\nINFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
WARMED = "count=20 first=5120 curr=4080 min=4010 max=5120 avg=4200.5 std=90\n\n"
ENDING = (
    "\nInference timings in us: Init: 12500, First inference: 5120, Warmup (avg): 4200.5, Inference (avg): {mean}\n"
    "Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE\n"
)
MEMORY = "Memory footprint delta from the start of the tool (MB): init=4.25 overall=9.5\n"


def test_output_of_benchmark_model_old_and_new() -> None:
    plain = "count=200 first=4100 curr=4070 min=4000 max=4400 avg=4.05e+03 std=35\n"
    old = android.parse(HEAD + WARMED + plain + ENDING.format(mean="4.05e+03"), 2)
    assert (old.threads, old.runs, old.init_ms, old.first_ms, old.warmup_mean_ms) == (2, 200, 12.5, 5.12, 4.2005)
    assert (old.mean_ms, old.min_ms, old.max_ms, old.std_ms) == (4.05, 4.0, 4.4, 0.035)
    assert old.median_ms is None and old.p5_ms is None and old.added_mb is None  # a mean is not a median
    newer = plain.rstrip() + " p5=4010 median=4045 p95=4150\n"
    text = "".join(f"I tflite  : {line}\n" for line in (HEAD + WARMED + newer + ENDING + MEMORY).splitlines())
    new = android.parse(text.format(mean="4050.25"), 1)
    assert (new.mean_ms, new.p5_ms, new.median_ms, new.p95_ms, new.added_mb) == (4.05025, 4.01, 4.045, 4.15, 9.5)
    alike = android.parse(HEAD + WARMED + "count=3 curr=4000\n" + ENDING.format(mean="4000"), 1)
    assert (alike.runs, alike.mean_ms, alike.min_ms) == (3, 4.0, None)
    with pytest.raises(RemoteError, match=r"no timings: Failed to load model\. Try it by hand"):
        android.parse("STARTING!\nFailed to load model.\n\n", 1)
    with pytest.raises(RemoteError, match="it printed nothing"):
        android.parse("", 1)


ADB = """#!{python}
import os, shutil, subprocess, sys
root, words = {root!r}, sys.argv[1:]
if words == ["devices"]:
    print("List of devices attached")
    print(open(root + "/devices").read())
    sys.exit()
assert words[:2] == ["-s", "emulator-5554"], words
if words[2] == "push":
    if os.path.exists(root + "/full"):
        sys.exit("adb: error: failed to copy: remote couldn't write file: No space left on device")
    shutil.copyfile(words[3], words[4].replace("/data/local/tmp", root))
elif words[2] == "shell":
    properties = {{"manufacturer": "Acme", "product.model": "One", "release": "14", "abilist": "arm64-v8a,armeabi-v7a"}}
    prelude = "getprop() {{ case $1 in " + "".join(
        "*" + name + ") echo '" + value + "' ;;" for name, value in properties.items()
    ) + "*) echo ;; esac; }}; "
    sys.exit(subprocess.run(["sh", "-c", prelude + words[3].replace("/data/local/tmp", root)]).returncode)
"""
TOOL = """#!{python}
import sys, time
sys.path.insert(0, {here!r})
options = dict(word[2:].split("=") for word in sys.argv[1:])
from export.device.timing import time_invocations
from export.device.interpreter import Model
begin = time.perf_counter()
model = Model(options["graph"], threads=int(options["num_threads"]))
assert options["use_xnnpack"] == "true"
init = (time.perf_counter() - begin) * 1e6
found = time_invocations(model, warmup=int(options["warmup_runs"]), runs=int(options["num_runs"]))
warm, runs = [[ms * 1000 for ms in series] for series in (found.warmup_ms, found.runs_ms)]
for us in (warm, runs):
    print(f"count={{len(us)}} first={{us[0]:.0f}} curr={{us[-1]:.0f}} min={{min(us):.0f}} max={{max(us):.0f}} "
          f"avg={{sum(us) / len(us):g}} std=1")
print(f"Inference timings in us: Init: {{init:.0f}}, First inference: {{warm[0]:.0f}}, "
      f"Warmup (avg): {{sum(warm) / len(warm):g}}, Inference (avg): {{sum(runs) / len(runs):g}}")
"""


@pytest.fixture
def phone(programs: Path, tmp_path: Path) -> Path:
    """A phone's /data/local/tmp, which is a folder here; its shell is this machine's."""
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "devices").write_text("emulator-5554\tdevice\n")
    install(programs, "adb", ADB.format(python=sys.executable, root=str(tmp_path / "phone")))
    return tmp_path / "phone"


def on_phone(run: Path, tool: Path, **changes: object) -> Config:
    return Config(run, adb=True, benchmark_model=tool, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_android_figures_come_home_and_nothing_stays(
    there: Path, phone: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(android, "RUNS", 20)
    tool = install(
        programs, "benchmark_model", TOOL.format(python=sys.executable, here=str(Path(__file__).parent.parent))
    )
    done = main(on_phone(there, tool, threads=(1, 2)))
    assert done.folder == there / "devices" / "Acme One emulator-5554" / "int8" and deploy.status(done) == 0
    written = read_json(android.AndroidReport, done.folder / "android.json")
    assert [each.threads for each in written.timings] == [1, 2] and written.timings[0].runs == android.RUNS
    assert (written.device.android, written.device.processor, written.tool_sha256) == ("14", "", sha256_of(tool))
    (row,) = report.main(report.Config(there)).devices
    assert row == done.row and row.passed is None and row.latencies[0].median_ms is None
    assert row.latencies[0].mean_ms == written.timings[0].mean_ms
    assert [path.name for path in phone.iterdir()] == ["devices"]


@pytest.mark.parametrize(
    ("listed", "serial", "meaning"),
    [
        ("", "", "no device"),
        (
            "emulator-5554\tdevice\nother\tdevice",
            "",
            r"several devices \(emulator-5554, other\). Choose one with --serial",
        ),
        ("emulator-5554\tdevice", "other", "no device other. There: emulator-5554"),
        ("emulator-5554\tunauthorized", "", "confirm the dialog"),
        ("emulator-5554\tno permissions (udev); see [page]", "", r"can not be used \(no permissions"),
    ],
)
def test_phones_that_cannot_be_used(
    shipped: Path, phone: Path, programs: Path, listed: str, serial: str, meaning: str
) -> None:
    (phone / "devices").write_text(listed)
    tool = install(programs, "benchmark_model", "#!/bin/sh\n")
    with pytest.raises(RemoteError, match=meaning):
        main(on_phone(shipped, tool, serial=serial))


def test_tools_that_cannot_run_there(there: Path, phone: Path, programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = programs / "foreign"
    foreign.write_bytes(b"\x7fELF\2\1\1" + bytes(11) + (62).to_bytes(2, "little"))
    with pytest.raises(ConfigError, match="built for x86_64, the device runs arm64-v8a, armeabi-v7a"):
        main(on_phone(there, foreign))
    with pytest.raises(ConfigError, match="no such file"):
        main(on_phone(there, programs / "none"))
    broken = install(programs, "broken", "#!/bin/sh\necho 'CANNOT LINK EXECUTABLE: library not found'\nexit 1\n")
    with pytest.raises(RemoteError, match=r"adb shell failed: CANNOT LINK .* Is it built for this device's processor"):
        main(on_phone(there, broken))
    (phone / "full").touch()
    with pytest.raises(RemoteError, match=r"adb push failed: .*No space left on device. Free some space on the device"):
        main(on_phone(there, broken))
    assert {path.name for path in phone.iterdir()} == {"devices", "full"} and not (there / "devices").exists()
    install(programs, "adb", "#!/bin/sh\nexec sleep 20\n")
    with pytest.raises(RemoteError, match=r"adb devices: no answer within 0.2 s"):
        android._adb("devices", seconds=0.2)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match="no adb here"):
        main(on_phone(there, broken))


def test_the_widest_table_still_fits(deployed: tuple[deploy.Deployed, Path, Path]) -> None:
    done, _, _ = deployed
    worst = dataclasses.replace(
        done.row,
        name="a name that somebody gave to a device in the kitchen",
        latencies=(devices.DeviceLatency(16, 12345.678, 12345.678, 12345.678, 12_345_678_901, "busy"),),
        max_difference=1.0,
        passed=False,
    )
    table = [line for line in devices.shown([worst]) if ": " not in line]
    assert max(map(len, table)) <= 121
    assert any("12345.68" in line and "FAILED" in line and "1.000000" in line for line in table)
    assert any("noisy, do not trust the times (busy)" in line for line in devices.shown([worst]))
