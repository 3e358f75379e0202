"""A device at the other end of ssh: one connection, one authentication, and an agent there that does as it is told.

The system's own OpenSSH client is used, so configuration, keys, agent and known hosts of the user hold. Checks of host
keys are never turned off.
"""

import contextlib
import errno
import inspect
import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgetl.errors import ConfigError, EdgetlError
from export import remote_agent

OLDEST_PYTHON = (3, 9)
"""That the device program runs on."""
OPTIONS = {
    "BatchMode": "yes",  # nobody may be there to answer
    "ConnectTimeout": "15",
    "ServerAliveInterval": "5",  # a device that lost its power or network is noticed after 15 s
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",  # the user's configuration may name one, which excludes ours
}
GREETING = "edgetl-agent"
BOOTSTRAP = (
    "import sys; sys.path = [p for p in sys.path if p]; "  # a file select.py in the home directory must do no harm
    f'print("{GREETING} %d.%d" % sys.version_info[:2]); sys.stdout.flush(); '
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)
"""Any shell passes it on as it is, any Python can read it."""
REASONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one known here. Only if you know why: "
        "delete {line}, then ssh to it once by hand and compare the fingerprint",
    ),
    (
        "Host key verification failed",
        "its host key is unknown here. Run ssh to it once by hand and compare the fingerprint",
    ),
    ("Could not resolve hostname", "unknown host name. Check --ssh, or add the device to ~/.ssh/config"),
    ("Connection refused", "nothing listens there. Check --port, and that the device runs an ssh server"),
    (
        "timed out|No route to host|Network is unreachable|not responding",
        "does not answer. Check that the device is on and in this network",
    ),
    (
        "Permission denied|Too many authentication failures",
        "does not let you in. Install a key with ssh-copy-id, or name one with --identity",
    ),
)
"""What ssh says, and what it means to the user."""


class RemoteError(EdgetlError):
    """A device can't be reached, or can't do what it is asked for."""


@dataclass(frozen=True)
class Link:
    """How to reach a device."""

    host: str
    """As ssh takes it: `host`, `user@host`, or a name of its configuration."""
    port: int | None = None
    identity: Path | None = None
    """File of the private key."""
    config: Path | None = None
    """Instead of ~/.ssh/config."""
    python: str = "python3"

    @property
    def name(self) -> str:
        """The host without the user."""
        return self.host.rpartition("@")[2]

    def arguments(self) -> list[str]:
        """The command that starts the agent there.

        Raises:
            ConfigError: a setting that ssh can't or must not see.
        """
        if not self.name or self.host.startswith("-") or re.search(r"\s", self.host):
            raise ConfigError(f"--ssh {self.host!r}: not a host. Expected user@host")
        for option, path in (("--identity", self.identity), ("--ssh-config", self.config)):
            if path and not path.expanduser().is_file():
                raise ConfigError(f"{option} {path}: no such file")
        options = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
        options += ["-F", str(self.config.expanduser())] if self.config else []
        options += ["-p", str(self.port)] if self.port else []
        options += ["-i", str(self.identity.expanduser())] if self.identity else []
        return ["ssh", "-T", *options, "--", self.host, f"{shlex.quote(self.python)} -c {shlex.quote(BOOTSTRAP)}"]


@dataclass(frozen=True)
class Content:
    """A file to send."""

    path: str
    """Within the folder that it goes to, with slashes."""
    source: Path | bytes
    size: int
    sha256: str


class Remote:
    """A device whose agent runs."""

    def __init__(self, link: Link, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        """Wrap a started ssh.

        Args:
            link: how it was reached.
            process: ssh, with pipes for input and output.
            said: where its standard error goes.
        """
        self.link = link
        self._process = process
        self._said = said
        assert process.stdin and process.stdout
        self._input, self._output = process.stdin, process.stdout
        self.python = (0, 0)
        """Version of Python there."""

    def greet(self) -> None:
        """Wait for Python there, and send it the agent.

        Raises:
            RemoteError: no connection, no Python, or one that is too old.
        """
        found = None
        while not found:  # a login script may print something first
            line = self._output.readline()
            if not line:
                raise self._unreachable()
            found = re.search(rf"{GREETING} (\d+)\.(\d+)\s*$", line.decode(errors="replace"))
        self.python = int(found[1]), int(found[2])
        if self.python < OLDEST_PYTHON:
            raise RemoteError(
                f"{self.link.host}: {self.link.python} is Python {found[1]}.{found[2]}, the device program needs "
                f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or later. Install a newer one there and name it with --python"
            )
        source = inspect.getsource(remote_agent).encode()
        self._send(b"%d\n" % len(source) + source)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Have the agent do something.

        Args:
            command: one of `remote_agent.COMMANDS`.
            arguments: its own.

        Returns:
            Its answer.

        Raises:
            RemoteError: it could not, or the connection was lost.
        """
        self._send(json.dumps({"command": command, **arguments}).encode() + b"\n")
        return self._answer(command)

    def send(self, folder: str, contents: Sequence[Content], advance: Callable[[int], object]) -> None:
        """Copy files into a folder that gets its name when all of them are there.

        Args:
            folder: absolute path there.
            contents: the files.
            advance: is told the number of files sent since the last time.

        Raises:
            RemoteError: no space, no permission, or the connection was lost.
        """
        request = {"command": "receive", "folder": folder, "files": listed(contents)}
        self._send(json.dumps(request).encode() + b"\n")
        for content in contents:
            source = content.source
            self._send(source if isinstance(source, bytes) else source.read_bytes())
            advance(1)
        if not self._answer("copy")["intact"]:
            raise RemoteError(f"{self.link.host}: files changed on their way to {folder}. Run the same command again")

    def _send(self, content: bytes) -> None:
        # An agent that gave up has said why: `_answer` will read it.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(content)
            self._input.flush()

    def _answer(self, what: str) -> dict[str, Any]:
        line = self._output.readline()
        if not line.endswith(b"\n"):
            status, said = self._ended()
            reason = f" ({said[-1]})" if said else f" (ssh ended with status {status})"
            raise RemoteError(f"{self.link.host}: connection lost during {what}{reason}. Run the same command again")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            full = answer["errno"] in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            advice = "Free some space there" if full else "Check it there"
            raise RemoteError(f"{self.link.host}: {answer['error']}. {advice}, or choose another --remote-dir")
        return answer

    def _unreachable(self) -> RemoteError:
        """Say why ssh ended before Python there said a word."""
        status, said = self._ended()
        last = said[-1].removeprefix("ssh: ") if said else f"ended with status {status}"
        if status in (126, 127):
            return RemoteError(
                f"{self.link.host}: no Python there as {self.link.python} ({last}). Install python3, or name it with "
                "--python"
            )
        if status != 255:  # ssh's own
            return RemoteError(
                f"{self.link.host}: {self.link.python} does not work there ({last}). Try it there by hand"
            )
        for pattern, meaning in REASONS:
            if re.search(pattern, "\n".join(said)):
                known = re.search(r"Offending \S+ key in (.+:\d+)", "\n".join(said))
                meaning = meaning.format(line=known[1] if known else "it from known_hosts")
                return RemoteError(f"{self.link.host}: {meaning} (ssh: {last})")
        return RemoteError(f"{self.link.host}: no connection (ssh: {last}). Try ssh by hand")

    def _ended(self) -> tuple[int, list[str]]:
        """Wait for ssh; tell its exit status and what it said."""
        status = self._process.wait()
        self._said.seek(0)
        return status, [
            line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()
        ]


def listed(contents: Sequence[Content]) -> list[tuple[str, int, str]]:
    """Describe files as the agent takes them."""
    return [(content.path, content.size, content.sha256) for content in contents]


@contextlib.contextmanager
def connected(link: Link) -> Iterator[Remote]:
    """Reach a device; nothing of ours runs there any more when the block ends, however it ends.

    Raises:
        ConfigError: a setting that can't work.
        RemoteError: no ssh here, no connection, no Python there.
    """
    arguments = link.arguments()
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,  # Ctrl-C is for this process, which then ends ssh in order
            )
        except FileNotFoundError:
            raise RemoteError("no ssh client here. Install OpenSSH's (Debian: apt install openssh-client)") from None
        try:
            remote = Remote(link, process, said)
            remote.greet()
            yield remote
        finally:
            _close(process)


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError):  # of what was not sent any more
        process.stdin.close()  # the agent takes it as the end, and ends what it runs
    try:
        # The agent is patient twice with what it ends, ssh three times with a device that is gone.
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
