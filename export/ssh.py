"""The user's own OpenSSH client: how a device is reached with it, and what it means when it says no.

Configuration, keys, agent and known hosts of the user hold. Checks of host keys are never turned off.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetl.errors import ConfigError, EdgetlError
from export.remote_agent import MARK, SILENT_SECONDS

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
BOOTSTRAP = (
    "import signal, sys; sys.path = [p for p in sys.path if p]; "  # a select.py in the home directory must do no harm
    f"signal.alarm({SILENT_SECONDS}); "
    f'print("{MARK} %d.%d" % sys.version_info[:2]); sys.stdout.flush(); '
    "exec(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))"
)
"""Any shell passes it on as it is, any Python can read it."""
ENDED = "ended"
LAUNCH = f'"$0" -c "$1"; status=$?; echo "{MARK} {ENDED} $status"; exit $status'
"""Says when Python has ended: ssh itself may wait on, for whatever else the login has started."""
UNKNOWN_KEY = "its host key is unknown here. Run ssh to it once by hand and compare the fingerprint"
CHANGED_KEY = (
    "its host key is not the one known here. Only if you know why: "
    "delete {line}, then ssh to it once by hand and compare the fingerprint"
)
REASONS = (
    ("Host key verification failed", UNKNOWN_KEY),
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


LINE = 300


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
        """The host without the user; with the port, behind which there may be another device."""
        host = self.host.rpartition("@")[2]
        return f"{host}-{self.port}" if host and self.port not in (None, 22) else host

    def check(self) -> None:
        """Refuse what can't work, before anything is named after the host.

        Raises:
            ConfigError: a setting that ssh can't or must not see.
        """
        if not self.name or self.host.startswith("-") or re.search(r"\s", self.host):
            raise ConfigError(f"--ssh {self.host!r}: not a host. Expected user@host")
        for option, path in (("--identity", self.identity), ("--ssh-config", self.config)):
            if path and not path.expanduser().is_file():
                raise ConfigError(f"{option} {path}: no such file")

    def arguments(self) -> list[str]:
        """The command that starts the agent there.

        Raises:
            ConfigError: see `check`.
        """
        self.check()
        options = [word for name, value in OPTIONS.items() for word in ("-o", f"{name}={value}")]
        options += ["-F", str(self.config.expanduser())] if self.config else []
        options += ["-p", str(self.port)] if self.port is not None else []
        options += ["-i", str(self.identity.expanduser())] if self.identity else []
        home = "".join(re.findall(r"^~[\w.-]*/", self.python))  # for the shell there, which knows where it is
        python = home + shlex.quote(self.python.removeprefix(home))
        command = f"sh -c {shlex.quote(LAUNCH)} {python} {shlex.quote(BOOTSTRAP)}"
        return ["ssh", "-T", *options, "--", self.host, command]


def meaning(said: Sequence[str]) -> str:
    """What the user should know of what ssh said; empty if that is unknown.

    Args:
        said: its lines; the last ones say why it gave up, earlier ones may be a greeting of the device's.
    """
    known = (text for line in reversed(said) for pattern, text in REASONS if re.search(pattern, line))
    found = next(known, "")
    if found == UNKNOWN_KEY and any("IDENTIFICATION HAS CHANGED" in line for line in said):
        key = re.search(r"Offending \S+ key in (.+:\d+)", "\n".join(said))
        return CHANGED_KEY.format(line=key[1] if key else "it from known_hosts")
    return found


def lines_of(text: str) -> list[str]:
    """What something else said, line by line, without the empty ones."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def clipped(line: str) -> str:
    """As much of what something else said as fits into a message."""
    return line if len(line) <= LINE else f"{line[:LINE]}..."
