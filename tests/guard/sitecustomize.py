"""Keeps tests and the Python programs that they start on this machine: every other address is refused and noted.

Python imports a module of this name when it starts, if it finds one: `tests/conftest.py` puts its folder on the path
of all children. An audit hook sees what any library asks the `socket` module for, and can't be taken back. Old boards'
Pythons are among the children: no newer syntax here.
"""

import os
import sys

NOTES = "EDGETL_TESTS_ATTEMPTS"
"""Names the file to which each attempt adds a line."""


def is_local(address):
    """Whether an address, as sockets take it, is one of this machine: a path, `localhost`, a loopback number."""
    import ipaddress

    host = address[0] if isinstance(address, tuple) and address else address
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if not isinstance(host, str):
        return host is None  # of getaddrinfo: any of this machine's
    if host in ("", "localhost") or "/" in host or host.startswith("\0"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def hook(event, arguments):
    """Refuse what would leave this machine."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        target = arguments[1]
        if target is None or isinstance(target, int):  # netlink; a socket that is connected already
            return
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        target = arguments[0]
    else:
        return
    if is_local(target):
        return
    import socket

    line = f"{event} {target}"
    # The dashboard of a Ray cluster reports to its makers and asks clouds whose machine it is on, even when told not
    # to: refused like all others, but no test's doing. A worker, which runs tasks of ours, does not import it.
    if os.environ.get(NOTES) and "ray.dashboard" not in sys.modules:
        with open(os.environ[NOTES], "a") as notes:  # noqa: PTH123 - pathlib would cost every child its import
            notes.write(line + "\n")
    kind = socket.gaierror if isinstance(target, str) else ConnectionRefusedError
    raise kind("tests have no network: " + line)


if not getattr(sys, "_edgetl_guarded", False):  # a worker of pytest-xdist is a child, too
    sys._edgetl_guarded = True
    sys.addaudithook(hook)
