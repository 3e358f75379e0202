"""A device at the other end of ssh: one connection, one authentication, and an agent there that does as it is told."""

import contextlib
import errno
import inspect
import json
import queue
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from export import remote_agent
from export.ssh import ENDED, Link, RemoteError, clipped, lines_of, meaning

OLDEST_PYTHON = (3, 9)
"""That the device program runs on."""
GREETING_SECONDS = 40
"""From the start of ssh to the first word of Python there; a Pi Zero takes 10."""
PULSE_SECONDS = 10
"""Between signs of life to an agent that is busy."""
CLOSING_SECONDS = 20
"""The agent is patient twice with what it ends, ssh three times with a device that is gone."""
ENDING_SECONDS = 2
"""For ssh, once all is said: what the login left running there may hold it."""
DOING = {
    "look": "looking at the device",
    "has": "looking for what is there",
    "receive": "copying files",
    "run": "a program ran there",
    "make_venv": "installing packages",
    "remove": "deleting files",
}
"""The agent's commands in words."""
ADVICE = {
    errno.ENOSPC: "Free some space there",
    errno.EDQUOT: "Free some space there",
    errno.EFBIG: "Free some space there",
    errno.EWOULDBLOCK: "Wait until it ends, 2 minutes where the network was lost",
}
"""What to do about an error there; for all others, to look."""


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
        assert process.stdin
        self._input = process.stdin
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._stray = ""
        """The last line that was not the agent's."""
        self.python = (0, 0)
        """Version of Python there."""

    def greet(self) -> None:
        """Wait for Python there, and send it the agent.

        Raises:
            RemoteError: no connection, no Python, or one that is too old.
        """
        try:
            told = self._hear(GREETING_SECONDS)
        except queue.Empty:
            last = self._ended()[1][-1:] or [self._stray or "it printed nothing"]
            raise RemoteError(
                f"{self.link.host}: the login there does not start {self.link.python} within {GREETING_SECONDS:g} s "
                f"(last line: {clipped(last[0])}). Try ssh by hand"
            ) from None
        found = re.fullmatch(r"(\d+)\.(\d+)", told)
        if not found:
            raise self._unreachable(told)
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
        return self._answer(DOING[command])

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
        if not self._answer(DOING["receive"])["intact"]:
            raise RemoteError(f"{self.link.host}: files changed on their way to {folder}. Run the same command again")

    def _send(self, content: bytes) -> None:
        # An agent that gave up has said why: `_answer` will read it.
        with contextlib.suppress(BrokenPipeError):
            self._input.write(content)
            self._input.flush()

    def _answer(self, doing: str) -> dict[str, Any]:
        told = None
        while told is None:
            try:
                told = self._hear(PULSE_SECONDS)
            except queue.Empty:
                self._send(b"\n")
        if not told.startswith("{"):
            status, said = self._ended(told)
            reason = clipped(said[-1]) if said else f"ssh ended with status {status}"
            raise RemoteError(f"{self.link.host}: connection lost while {doing} ({reason}). Run the same command again")
        try:
            answer: dict[str, Any] = json.loads(told)
        except (json.JSONDecodeError, RecursionError):
            raise RemoteError(
                f"{self.link.host}: something else writes into the connection ({clipped(told)}). Look at what the "
                "login there starts"
            ) from None
        if "error" in answer:
            advice = ADVICE.get(answer["errno"], "Check it there")
            raise RemoteError(f"{self.link.host}: {answer['error']}. {advice}, or choose another --remote-dir")
        return answer

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout as output:
            for line in output:
                self._lines.put(line)
        self._lines.put(None)

    def _hear(self, seconds: float) -> str:
        """Wait for a line of the agent's; anything else there may print lines too.

        Returns:
            The line without its mark; empty at the end of the connection.

        Raises:
            queue.Empty: nothing for so long.
        """
        end = time.monotonic() + seconds
        while (line := self._lines.get(timeout=max(0, end - time.monotonic()))) is not None:
            if time.monotonic() > end:  # it prints without end
                raise queue.Empty
            text = line.decode(errors="replace").strip()
            before, mark, told = text.partition(f"{remote_agent.MARK} ")
            if mark:
                return told
            self._stray = before or self._stray
        return ""

    def _unreachable(self, told: str) -> RemoteError:
        """Say why ssh ended before Python there said a word."""
        status, said = self._ended(told)
        last = clipped(said[-1].removeprefix("ssh: ")) if said else f"ended with status {status}"
        if status in (126, 127):
            return RemoteError(
                f"{self.link.host}: no Python there as {self.link.python} ({last}). Install python3, or name it with "
                "--python"
            )
        if status != 255:  # ssh's own
            return RemoteError(
                f"{self.link.host}: {self.link.python} does not work there ({last}). Try it there by hand"
            )
        if known := meaning(said):
            return RemoteError(f"{self.link.host}: {known} (ssh: {last})")
        return RemoteError(f"{self.link.host}: no connection (ssh: {last}). Try ssh by hand")

    def _ended(self, told: str = "") -> tuple[int, list[str]]:
        """Wait for ssh, but not long.

        Args:
            told: the last thing heard: perhaps the exit status of Python there.

        Returns:
            Exit status, and what ssh and the programs there said on standard error.
        """
        self._wait()
        status = int(told.split()[1]) if told.startswith(ENDED) else self._process.returncode
        self._said.seek(0)
        return status, lines_of(self._said.read().decode(errors="replace"))

    def _wait(self) -> None:
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End the agent, and with it all that it has started, then ssh."""
        with contextlib.suppress(BrokenPipeError):  # of what was not sent any more
            self._input.close()  # the agent takes it as the end
        end = time.monotonic() + CLOSING_SECONDS
        with contextlib.suppress(queue.Empty):
            while self._process.poll() is None and self._hear(end - time.monotonic()).startswith("{"):
                pass
        self._wait()
        self._listener.join(ENDING_SECONDS)


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
        remote = Remote(link, process, said)
        try:
            remote.greet()
            yield remote
        finally:
            remote.close()
