"""Foreign programs that may crash: run apart, their end told in words."""

import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """A program that has come to its end."""

    status: int
    """0 when all went well; negative: the signal that killed it."""
    output: str
    errors: str
    """Standard output and standard error."""

    @property
    def crashed(self) -> bool:
        """Whether it ended by a fault of its own; SIGKILL comes from outside."""
        return self.status < 0 and self.status != -signal.SIGKILL

    @property
    def how(self) -> str:
        """`crashed (SIGSEGV)`, `was killed`, or `failed` with the last line that it said."""
        if self.crashed:
            known = -self.status in {each.value for each in signal.Signals}
            return f"crashed ({signal.Signals(-self.status).name if known else f'signal {-self.status}'})"
        if self.status < 0:
            return "was killed (perhaps for want of memory)"
        last = (self.errors.strip() or self.output.strip() or f"exit status {self.status}").splitlines()[-1]
        return f"failed: {last.rstrip('.')}"


def run(
    command: Sequence[str], *, patience_s: float | None = None, environment: Mapping[str, str] | None = None
) -> Ended:
    """Run a program to its end; it is killed when this process is interrupted.

    Args:
        command: program and arguments, without a shell.
        patience_s: it is killed after so many seconds; None waits for ever.
        environment: its variables; None means those of this process.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, timeout=patience_s, env=environment
    )
    return Ended(done.returncode, done.stdout, done.stderr)
