"""The log, the bars, and silence."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetl.console import log, log_to_stderr, progress, swallowed_output


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


def test_a_notebook_hears_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("work", 3) as bar:
        bar.advance(3)
    log.info("a line")
    assert capfd.readouterr() == ("", "")


def test_without_a_terminal_a_bar_is_one_line_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr():
        with progress("features", 10) as bar:
            bar.advance(4)
            bar.advance(6)
            assert capsys.readouterr().err == ""
        with progress("load"):
            pass
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("features 10/10 (") and first.endswith(" s)")
    assert second.startswith("load (")


def test_quiet_bars_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(logging.WARNING), progress("features", 10) as bar:
        bar.advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_bar_does_not_claim_work_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(), pytest.raises(ZeroDivisionError), progress("features", 10):
        raise ZeroDivisionError
    assert "features" not in capsys.readouterr().err


def test_work_that_an_earlier_process_did_counts_as_done(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(), progress("training", 10, done=7) as bar:
        part = bar.part("epoch 2", 5, done=2)
        for _ in range(3):
            bar.advance()
            part.advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training 10/10 ("), "of the whole; parts have no line of their own"


def test_lines_said_under_a_bar_go_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_stderr(), progress("training", 2) as bar:
        bar.say("epoch 1 [of 2] %s")
        assert capsys.readouterr().err == "epoch 1 [of 2] %s\n"
    with log_to_stderr(logging.WARNING), progress("training", 2) as bar:
        bar.say("quiet")
    assert "quiet" not in capsys.readouterr().err


def shown_on_a_terminal(work: str) -> str:
    """What a terminal gets from a few lines of Python, in order, with its control sequences."""
    program = f"import time\nfrom edgetl.console import *\nwith log_to_stderr():\n    {work}\n"
    main, terminal = os.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    subprocess.run([sys.executable, "-c", program], stderr=terminal, env=env, check=True)
    os.write(terminal, b"end")  # reading nothing at all would be an error
    os.close(terminal)
    shown = os.read(main, 100_000).decode()
    os.close(main)
    return shown.removesuffix("end")


def test_on_a_terminal_parts_replace_each_other_and_lines_stay_whole() -> None:
    long = "x" * 150
    shown = shown_on_a_terminal(
        f"""with progress('training', 10, done=4) as bar:
        one = bar.part('epoch 1', 5, done=4); bar.advance(); one.advance()
        bar.say('said [red]1[/red] {long}')
        two = bar.part('epoch 2', 5); bar.advance(5); two.advance(5)"""
    )
    assert f"said [red]1[/red] {long}" in shown, "no markup, not broken"
    last = shown[shown.rindex("training") :]
    assert "10/10" in last and "epoch 2" in last and "5/5" in last and "epoch 1" not in last
    quiet = shown_on_a_terminal(
        """log.setLevel('WARNING')
    with progress('training', 10) as bar: bar.part('epoch', 5).advance(); bar.say('said')"""
    )
    assert quiet == ""


def test_on_a_terminal_a_bar_shows_count_and_rate() -> None:
    program = (
        "import time; from edgetl.console import *\n"
        "with log_to_stderr(), progress('features', 10) as bar: bar.advance(4); time.sleep(0.01); bar.advance(6)\n"
        "print('done')\n"
    )
    main, terminal = os.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", program], stderr=terminal, stdout=subprocess.PIPE, env=env, check=True)
    os.close(terminal)
    shown = os.read(main, 100_000).decode()
    os.close(main)
    assert done.stdout == b"done\n"
    assert "features" in shown and "10/10" in shown and "/s" in shown


def test_swallowed_output_is_back_after_the_block() -> None:
    program = """if True:
        import os, subprocess, sys
        from edgetl.console import swallowed_output
        print("before")
        with swallowed_output():
            print("python")
            print("python", file=sys.stderr)
            os.write(1, b"native out")
            os.write(2, b"native err")
            subprocess.run(["echo", "child"], check=True)
        print("after")
        """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"before\nafter\n", b"")


def test_what_was_swallowed_comes_with_the_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong") as caught, swallowed_output():
        for number in range(30):
            os.write(2, f"line {number}\n".encode())
        raise ValueError("wrong")
    (note,) = caught.value.__notes__
    assert note.splitlines() == ["last output:", *(f"line {number}" for number in range(10, 30))]
    os.write(1, b"open again\n")
    assert capfd.readouterr() == ("open again\n", "")


def test_swallowing_leaks_no_descriptor() -> None:
    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = opened()
    for _ in range(5):
        with swallowed_output():
            pass
    assert opened() == before


def test_the_log_is_as_before_after_a_command() -> None:
    before = list(log.handlers), log.level, log.propagate
    with pytest.raises(ZeroDivisionError), log_to_stderr():
        raise ZeroDivisionError
    assert (log.handlers, log.level, log.propagate) == before


def test_threads_that_swallow_at_once_give_the_descriptors_back() -> None:
    program = """if True:
        import threading, time
        from edgetl.console import swallowed_output
        def work():
            for _ in range(20):
                with swallowed_output():
                    time.sleep(0.001)
        threads = [threading.Thread(target=work) for _ in range(4)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print("still here", flush=True)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "still here\n"
