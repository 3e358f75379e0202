"""What Android's own adb says where no device is connected."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from export import android
from export.ssh import RemoteError

pytestmark = pytest.mark.clients


def test_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shutil.which("adb"):
        pytest.fail("adb is not installed (Debian: apt install adb)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", str(port))  # a server of its own, which leaves a user's alone
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps its key
    try:
        with pytest.raises(RemoteError, match="adb: no device"):
            android._choose("")
        with pytest.raises(RemoteError, match="adb: no device"):
            android._choose("emulator-5554")
        with pytest.raises(RemoteError, match=r"adb shell failed: .*device 'emulator-5554' not found"):
            android.describe("emulator-5554")
    finally:
        subprocess.run(["adb", "kill-server"], env=os.environ, check=False, capture_output=True)
