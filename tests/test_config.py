"""Settings: dataclass, JSON and command line agree; a wrong one is one line that says which."""

import errno
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetl.config import command, from_json, parse, to_json
from edgetl.console import log
from edgetl.errors import ConfigError, DatasetError
from edgetl.inputs import ImageInput


@dataclass(frozen=True)
class Inner:
    name: str
    size: int


@dataclass(frozen=True)
class Settings:
    """Try things out."""

    data: Path
    """Where photos lie."""
    rate: float = 1e-3
    """Learning rate."""
    kind: Literal["linear", "mlp"] = "linear"
    """Which head."""
    units: tuple[int, ...] = (256,)
    """Widths."""
    image_size: int = 0
    """Pixels."""


@dataclass(frozen=True)
class Whole:
    inner: Inner
    values: dict[str, float] = field(default_factory=dict)


def run(main: Callable[[Settings], object], *argv: str) -> int:
    return command(main, Settings, prog="try", argv=argv)


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    before = log.handlers, log.level, log.propagate
    yield
    log.handlers, log.level, log.propagate = before


# --- JSON -----------------------------------------------------------------------------------------------------------


@given(
    st.builds(
        Settings,
        data=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map(Path),
        rate=st.floats(allow_nan=False, allow_infinity=False),
        kind=st.sampled_from(["linear", "mlp"]),
        units=st.lists(st.integers(-(2**40), 2**40)).map(tuple),
    )
)
def test_json_gives_back_what_went_in(settings: Settings) -> None:
    text = to_json(settings)
    assert text.endswith("}\n")
    assert from_json(Settings, text) == settings


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "x.json: top level"),
        ("", "x.json: top level"),
        ("[]", "x.json: top level"),
        ('{"rate": 1}', "x.json: data: "),
        ('{"data": "d", "rate": "fast"}', "x.json: rate: "),
        ('{"data": "d", "rat": 1}', "x.json: rat: "),
        ('{"data": "d", "kind": "tree"}', "x.json: kind: "),
        ('{"data": "d", "units": [1, "two"]}', "x.json: units.1: "),
    ],
)
def test_wrong_json_names_source_and_field(text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=f"^{where}"):
        from_json(Settings, text, source="x.json")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"inner": {"name": "a", "size": 1, "colour": 3}}', "inner.colour"),
        ('{"inner": {"name": "a"}}', "inner.size"),
        ('{"inner": {"name": "a", "size": 1}, "values": {"x": "y"}}', "values.x"),
    ],
)
def test_fields_of_inner_dataclasses_are_checked_as_well(text: str, where: str) -> None:
    with pytest.raises(ConfigError, match=f"JSON: {where}: "):
        from_json(Whole, text)


def test_checks_of_the_dataclass_itself_hold() -> None:
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        from_json(ImageInput, '{"height": 0, "width": 3}')


# --- the command line -----------------------------------------------------------------------------------------------


def test_options_become_fields() -> None:
    argv = ["--data", "p q", "--rate", "0.5", "--kind", "mlp", "--units", "4", "2", "--image-size", "64"]
    assert parse(Settings, argv, prog="try") == Settings(Path("p q"), 0.5, "mlp", (4, 2), 64)
    assert parse(Settings, ["--data", "d", "--image_size=64"], prog="try").image_size == 64


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["--data"]),
        (["--data"], ["--data"]),
        (["--data", "d", "--rate", "fast"], ["--rate", "fast"]),
        (["--data", "d", "--kind", "tree"], ["--kind", "tree", "linear", "mlp"]),
        (["--data", "d", "--image-size", "1.5"], ["--image-size", "1.5"]),
        (["--data", "d", "--imagesize", "3"], ["--imagesize", "Did you mean --image-size?"]),
        (["--data", "d", "--rat=3"], ["--rat", "Did you mean --rate?"]),
        (["--data", "d", "--zzz", "3"], ["--zzz"]),
        (["--data", "d", "stray"], ["stray"]),
        (["--data", "d", "--quiet=yes"], ["--quiet"]),
        (["--data", "d", "--debug=1"], ["--debug"]),
        (["--data", ""], ["--data '': a path is needed"]),  # as of an unset shell variable: it would mean this folder
        (["--data="], ["--data '': a path is needed"]),
    ],
)
def test_usage_error_is_one_line_that_names_the_option(
    argv: list[str], parts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda settings: pytest.fail("must not run"), *argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("try: ") and err.endswith("See try --help\n")
    assert all(part in err for part in parts), err


def test_help_lists_every_option_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(lambda settings: pytest.fail("must not run"), "--help")
    assert stop.value.code in (0, None)
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("Try things out", "--data", "--rate", "--image-size", "Learning rate", "--quiet", "--debug"):
        assert word in out


def test_result_is_printed_and_an_empty_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda settings: settings.rate, "--data", "d", "--rate", "0.25") == 0
    assert capsys.readouterr().out == "0.25\n"
    assert run(lambda settings: "", "--data", "d") == 0
    assert capsys.readouterr().out == ""


# --- errors ---------------------------------------------------------------------------------------------------------


def fail_with(error: BaseException) -> Callable[[Settings], object]:
    def main(settings: Settings) -> object:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DatasetError("photos/: no\n classes.  Add some"), 2, "try: photos/: no classes. Add some\n"),
        (KeyboardInterrupt(), 130, "try: interrupted. Run the same command again to resume.\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/x"),
            2,
            "try: out/x: No space left on device. Free some disk space and run the same command again; "
            "what was finished is kept\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "out"),
            2,
            "try: out: Permission denied. Choose a place that you may write to, or change its permissions\n",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "file/out"),
            2,
            "try: file/out: Not a directory. Check the path: a part of it is a file\n",
        ),
        (OSError("odd"), 2, "try: odd. --debug shows where\n"),
        (DatasetError("\x1b[31m\u202eé \udcff"), 2, "try: \\x1b[31m\\u202eé \\udcff\n"),
        (DatasetError(f"{'x' * 5000}. Rename it"), 2, f"try: {'x' * 995} ... {'x' * 989}. Rename it\n"),
    ],
)
def test_an_expected_error_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(fail_with(error), "--data", "d") == status
    assert capsys.readouterr() == ("", line)


def test_debug_shows_the_traceback_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(fail_with(DatasetError("broken")), "--data", "d", "--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)") and err.endswith("\ntry: broken\n")


def test_names_of_files_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\nfine: 0 errors\x1b[2Jé🐈\u202e\udcff\u2028.jpg"

    def main(settings: Settings) -> str:
        log.warning("left out: %s", name)
        return f"first\n{name[2:]}"

    rest = "fine: 0 errors\\x1b[2Jé🐈\\u202e\\udcff\\u2028.jpg"
    assert run(main, "--data", "d") == 0
    assert capsys.readouterr() == (f"first\n{rest}\n", f"left out: a\\n{rest}\n")
    for debug in ((), ("--debug",)):
        assert run(fail_with(DatasetError(name)), "--data", "d", *debug) == 2
        err = capsys.readouterr().err
        assert "\x1b" not in err and err.endswith(f"\ntry: a {rest[:-10]} .jpg\n"[not debug :])


def test_a_bug_is_not_dressed_up_as_the_users_error() -> None:
    with pytest.raises(ZeroDivisionError):
        run(fail_with(ZeroDivisionError()), "--data", "d")


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "expected"), [((), "a line\na warning\n"), (("--quiet",), "a warning\n")])
def test_quiet_leaves_only_warnings(
    options: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(settings: Settings) -> str:
        log.info("a line")
        logging.getLogger("edgetl.data").warning("a warning")
        return ""

    assert run(main, "--data", "d", *options) == 0
    assert capsys.readouterr().err == expected


def test_what_is_written_is_json() -> None:
    assert json.loads(to_json(Settings(Path("d"))))["units"] == [256]


def test_reader_that_has_seen_enough_is_no_error() -> None:
    code = "import sys; from edgetl.backbones import __main__ as m; from edgetl.config import command\n"
    code += "sys.exit(command(m.main, m.Config, prog='x', show=lambda r: m.show(r) * 500, argv=[]))"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{code}" | head -n 1'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
