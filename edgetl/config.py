"""Frozen dataclasses as the one form of every setting: command line, JSON and Python call alike.

Nothing in here knows about images or models.
"""

import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from edgetl.console import log_to_stderr
from edgetl.errors import ConfigError, EdgetlError
from edgetl.printable import printable

C = TypeVar("C")
R = TypeVar("R")

USAGE_ERROR = 2
INTERRUPTED = 130
LONGEST_LINE = 2000
"""Characters of an error that are printed; what to do stands at its end."""
QUIET = "--quiet"
DEBUG = "--debug"


def to_json(value: Any) -> str:
    """Turn a dataclass into indented JSON, ending with a newline."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(value)).dump_json(value, indent=2).decode() + "\n"


def from_json(kind: type[C], text: str | bytes, *, source: str = "JSON") -> C:
    """Build a dataclass from JSON, checking every field.

    Args:
        kind: the dataclass.
        text: JSON.
        source: where the text comes from, for the message.

    Raises:
        ConfigError: the text is not JSON, or a field is missing, unknown, of another type or of a value that can't be.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

    strict = with_config(ConfigDict(extra="forbid"))(kind) if dataclasses.is_dataclass(kind) else kind
    try:
        return TypeAdapter(strict).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        raise ConfigError(f"{source}: {where}: {first['msg']}") from error
    except ConfigError as error:  # of a dataclass that checks itself
        raise ConfigError(f"{source}: {error}") from error


def checked(config: C) -> C:
    """Check the fields of a settings dataclass built in Python as the command line checks them.

    Returns:
        The same settings, with text for paths and numbers turned into these.

    Raises:
        ConfigError: a field has another type, or is none of the choices.
    """
    from pydantic import TypeAdapter, ValidationError

    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    try:
        return TypeAdapter(type(config)).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        raise ConfigError(f"{name}: {first['msg']}. Received: {values.get(name)!r}") from error


def command(
    main: Callable[[C], R],
    config: type[C],
    *,
    prog: str,
    show: Callable[[R], str] = str,
    status: Callable[[R], int] = lambda _: 0,
    argv: Sequence[str] | None = None,
) -> int:
    """Run `main` as a command: parse, execute, print the result or one line of error.

    The command line is parsed before anything heavy is imported, so `--help` and a usage error are instant.

    Args:
        main: takes the config, returns a typed result.
        config: the dataclass whose fields are the options.
        prog: the command's name in help and messages.
        show: result -> text for standard output.
        status: result -> exit status, where a result can mean less than success.
        argv: arguments; default is the process's own.

    Returns:
        Exit status: that of the result, 2 for an error of the user's or the data's, 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    rest = [word for word in arguments if word not in (QUIET, DEBUG)]
    quiet, debug = QUIET in arguments, DEBUG in arguments
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        settings = parse(config, rest, prog=prog)
        with log_to_stderr(logging.WARNING if quiet else logging.INFO):
            result = main(settings)
            _print(show(result))
    except EdgetlError as error:
        return _fail(f"{prog}: {error}", error, debug, USAGE_ERROR)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(f"{prog}: {what}. {_os_advice(error)}", error, debug, USAGE_ERROR)
    except KeyboardInterrupt as error:
        line = f"{prog}: interrupted. Run the same command again to resume."
        return _fail(line, error, debug, INTERRUPTED)
    return status(result)


def parse(config: type[C], argv: Sequence[str], *, prog: str) -> C:
    """Parse options into a dataclass.

    Raises:
        ConfigError: a usage error, as one line.
        SystemExit: after `--help`.
    """
    import tyro

    _refuse_empty_paths(config, argv, prog)
    captured = io.StringIO()
    note = "\n\nAlso: --quiet (no progress, no log), --debug (traceback on errors)."
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(config, args=list(argv), prog=prog, description=(inspect.getdoc(config) or "") + note)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = f"{_one_line(captured.getvalue())}. {_nearest_options(config, argv)}See {prog} --help"
        raise ConfigError(message) from None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print(text: str) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without box characters shows the table all the same
    try:
        print("\n".join(map(printable, text.split("\n"))), end="\n" if text else "", flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough; the interpreter must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(line: str, error: BaseException, debug: bool, status: int) -> int:
    if debug:
        import traceback

        lines = "".join(traceback.format_exception(error)).split("\n")
        print("\n".join(map(printable, lines)), end="", file=sys.stderr)
    print(_one_line_of(line), file=sys.stderr)
    return status


def _one_line_of(text: str) -> str:
    """One line that fits on a screen, whatever names of strangers' files are in it."""
    line = " ".join(text.split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    return printable(line)


def _os_advice(error: OSError) -> str:
    import errno

    return {
        errno.ENOSPC: "Free some disk space and run the same command again; what was finished is kept",
        errno.EDQUOT: "Free some of your quota and run the same command again; what was finished is kept",
        errno.EFBIG: "Raise the limit on the size of files (ulimit -f), and run the same command again",
        errno.EACCES: "Choose a place that you may write to, or change its permissions",
        errno.EPERM: "Choose a place that you may write to, or change its permissions",
        errno.EROFS: "The file system is read-only; choose another place",
        errno.ENOENT: "Check the path",
        errno.ENOTDIR: "Check the path: a part of it is a file",
        errno.EEXIST: "Check the path: a file is there already",
        errno.EISDIR: "Check the path: it is a directory",
        errno.ENAMETOOLONG: "Check the path: names have at most 255 bytes",
    }.get(error.errno or 0, "--debug shows where")


def _one_line(box: str) -> str:
    """The messages of tyro's error boxes without frames and without the help text that they repeat."""
    sections = re.split(r"\n[^\n]*─{5,}[^\n]*", "\n" + re.sub(r"\x1b\[[0-9;]*m", "", box))
    texts = (" ".join(part.replace("│", " ").split()) for part in sections)
    keep = [t for t in texts if t and not t.startswith(("For full helptext", "Argument helptext", "Perhaps you meant"))]
    return "; ".join(text.rstrip(".:") for text in keep) or "cannot parse the command line"


def _refuse_empty_paths(config: type, argv: Sequence[str], prog: str) -> None:
    """Refuse '' for a path, what an unset shell variable gives: it would mean the folder that one happens to be in."""
    paths = {_option(field) for field in dataclasses.fields(config) if "Path" in str(field.type)}
    for word, value in itertools.zip_longest(argv, argv[1:]):
        option, _, attached = word.replace("_", "-").partition("=")
        if option in paths and (value if "=" not in word else attached) == "":
            raise ConfigError(f"{option} '': a path is needed, . for the current folder. See {prog} --help")
    if argv and argv[0] == "" and any("Positional" in str(field.type) for field in dataclasses.fields(config)):
        raise ConfigError(f"'': a path is needed, . for the current folder. See {prog} --help")


def _option(field: "dataclasses.Field[Any]") -> str:
    return f"--{field.name.replace('_', '-')}"


def _nearest_options(config: type, argv: Sequence[str]) -> str:
    from tyro.conf import Fixed

    # A subclass fixes what its recipe has no use for.
    names = [_option(f) for f in dataclasses.fields(config) if Fixed not in getattr(f.type, "__metadata__", ())]
    given = [word.split("=")[0] for word in argv if word.startswith("--")]
    unknown = [name for name in given if name.replace("_", "-") not in names]
    near = [match for name in unknown for match in difflib.get_close_matches(name, names, n=1)]
    return f"Did you mean {', '.join(near)}? " if near else ""
