"""What the system tells is read rightly, and what it does not tell is None: on trees of /proc and /sys made here."""

import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from export.device import energy, telemetry
from export.device.energy import Energy, Meter, measure_energy
from export.device.errors import DeviceError
from export.device.telemetry import Surroundings, Telemetry, Watch, memory_since, peak_bytes, resident_bytes

MB = 1024 * 1024


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def stat(*, user: int = 0, idle: int = 0, stolen: int = 0) -> str:
    return f"cpu  {user} 0 0 {idle} 7 0 0 {stolen} 99 0\ncpu0 1 0 0 0 0 0 0 0 0 0\ncpu1 1 0 0 0 0 0 0 0 0 0\nctxt 5\n"


def test_a_raspberry_pi(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "61834\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
            "sys/devices/system/cpu/cpufreq/scaling_cur_freq": "9999999\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        },
    )
    # Bits 16 and 18 of 0x50005 tell of the past.
    assert telemetry.telemetry(tmp_path) == Telemetry(61.834, 1500.0, ("under-voltage", "throttled"), None)


def test_a_phone_and_a_pc(tmp_path: Path) -> None:
    zones = {"battery": 90_000, "cpu-1-0": 55_000, "BIG": 58_500, "tsens_tz_sensor3": 57_000, "modem": 80_000}
    for number, (kind, degrees) in enumerate(zones.items()):
        plant(
            tmp_path,
            {f"sys/class/thermal/thermal_zone{number}/{f}": t for f, t in (("type", kind), ("temp", str(degrees)))},
        )
    plant(
        tmp_path, {f"sys/devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count": f"{n + 3}\n" for n in (0, 1)}
    )
    assert telemetry.telemetry(tmp_path) == Telemetry(58.5, None, (), 7)


def test_nothing_told_and_nonsense_are_none(tmp_path: Path) -> None:
    silent = Telemetry(None, None, (), None)
    assert telemetry.telemetry(tmp_path) == silent
    plant(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu",
            "sys/class/thermal/thermal_zone0/temp": "-274000\n",
            "sys/class/thermal/thermal_zone1/type": "cpu",  # and no reading
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "<unknown>\n",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "no\n",
            "proc/stat": "intr 1 2 3\n",
        },
    )
    (tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").mkdir(parents=True)
    assert telemetry.telemetry(tmp_path) == silent
    assert Watch(tmp_path).stop().others is None


@pytest.mark.parametrize(
    ("after", "share"),
    [
        # 1000 more ticks, 500 per core; of what others took, a tick per core may be chance.
        ({"user": 1100, "idle": 5900}, 0.098),
        ({"user": 1000, "idle": 5800, "stolen": 200}, 0.198),
        ({"user": 1002, "idle": 5998}, 0.0),
        ({"user": 2000, "idle": 5000}, 0.998),
        ({"user": 1000, "idle": 5000}, None),  # no time passed
    ],
)
def test_what_others_took(tmp_path: Path, after: dict[str, int], share: float | None) -> None:
    plant(tmp_path, {"proc/stat": stat(user=1000, idle=5000)})
    watch = Watch(tmp_path)
    plant(tmp_path, {"proc/stat": stat(**after)})
    others = watch.stop().others
    if share is None:
        assert others is None
    else:
        # This process itself ran for some milliseconds in between: at most 5 of its 1000 ticks.
        assert others == pytest.approx(share, abs=0.005)


def test_own_work_is_not_held_against_others(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    plant(tmp_path, {"proc/stat": stat(user=1000, idle=5000)})
    watch, end = Watch(tmp_path), time.process_time() + 0.2
    while time.process_time() < end:
        pass
    plant(tmp_path, {"proc/stat": stat(user=1000 + int(0.2 * ticks) + 2, idle=5000 + 80)})
    assert watch.stop().others == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_this_machine_tells() -> None:
    watch, end = Watch(), time.perf_counter() + 0.1
    while time.perf_counter() < end:
        pass
    found = watch.stop()
    assert found.seconds >= 0.1
    assert found.others is not None and 0 <= found.others <= 1


def test_slowed_by() -> None:
    def around(before: Telemetry, after: Telemetry) -> str:
        return Surroundings(1.0, None, before, after).slowed_by

    calm = Telemetry(50.0, 1500.0, (), 3)
    assert around(calm, calm) == ""
    assert around(calm, Telemetry(80.0, 1500.0, (), 4)) == "throttled"
    assert around(Telemetry(None, None, (), None), Telemetry(None, None, (), None)) == ""
    low = Telemetry(50.0, 1500.0, ("under-voltage",), None)
    assert around(low, calm) == around(low, low) == "under-voltage"
    assert around(low, Telemetry(80.0, 600.0, ("throttled",), None)) == "under-voltage, throttled"


def test_memory_of_a_fake_process(tmp_path: Path) -> None:
    plant(tmp_path, {"proc/self/status": "Name:\tpython\nVmPeak:\t 900000 kB\nVmHWM:\t 80000 kB\nVmRSS:\t 50000 kB\n"})
    before = resident_bytes(tmp_path)
    assert (peak_bytes(tmp_path), before) == (80_000 * 1024, 50_000 * 1024)
    assert memory_since(before, tmp_path) == telemetry.Memory(80_000 * 1024, 30_000 * 1024)
    assert memory_since(90_000 * 1024, tmp_path).added_bytes == 0
    assert memory_since(None, tmp_path).added_bytes is None


def test_without_proc_getrusage_is_asked_whose_units_differ(tmp_path: Path) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    linux, mac = peak_bytes(tmp_path, "linux"), peak_bytes(tmp_path, "darwin")
    assert linux is not None and mac is not None
    # The peak may rise by a little between two calls.
    assert most * 1024 <= linux < most * 1024 + 10 * MB
    assert linux // 1024 == pytest.approx(mac, abs=10 * 1024)


@pytest.mark.skipif(sys.platform != "linux", reason="only there it is inherited")
def test_the_peak_is_not_the_parents() -> None:
    ballast = bytearray(os.urandom(1)) * (100 * MB)
    code = "from export.device.telemetry import peak_bytes; print(peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert 5 * MB < int(done.stdout) < 60 * MB < len(ballast)


# --- energy ----------------------------------------------------------------------------------------------------------


def counter(folder: Path, values: list[int], name: str = "energy_uj") -> Meter:
    """A counter that gives these values one after the other."""
    path = plant(folder, {name: str(values[0])}) / name
    meter, coming = Meter(path), itertools.chain(values, itertools.repeat(values[-1]))
    meter.read = lambda: next(coming)  # type: ignore[method-assign]
    return meter


def test_a_counter(tmp_path: Path) -> None:
    assert counter(tmp_path, [1_000_000, 3_500_000]).over(lambda: None).joules == 2.5
    assert counter(tmp_path, [0, 40], "energy1_input").over(lambda: None).readings == 0


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    plant(tmp_path, {"max_energy_range_uj": "262143328850\n"})
    assert counter(tmp_path, [262_143_328_800, 950]).over(lambda: None).joules == pytest.approx(1e-3)


def test_a_counter_that_goes_backwards(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="max_energy_range_uj: No such file"):
        counter(tmp_path, [500, 400]).over(lambda: None)
    plant(tmp_path, {"max_energy_range_uj": "50\n"})
    with pytest.raises(DeviceError, match="counted backwards"):
        counter(tmp_path, [500, 400]).over(lambda: None)


def test_a_counter_that_stands_still(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"energy_uj: it stood still for 0\.0 s"):
        counter(tmp_path, [500, 500]).over(lambda: None)


def test_a_power_file_is_read_again_and_again(tmp_path: Path) -> None:
    path = plant(tmp_path, {"power1_input": "2000000\n"}) / "power1_input"
    reading = Meter(path).over(lambda: time.sleep(0.1))
    assert reading.seconds >= 0.1
    assert reading.joules == pytest.approx(2 * reading.seconds)
    assert 2 <= reading.readings <= 0.1 / energy.POLL_SECONDS + 2 + (reading.seconds - 0.1) / energy.POLL_SECONDS

    def rise() -> None:
        time.sleep(0.1)
        path.write_text("4000000\n")
        time.sleep(0.3)

    changing = Meter(path)
    reading = changing.over(rise)
    assert 2 * reading.seconds < reading.joules < 4 * reading.seconds, "each reading counts until the next one"


def test_a_power_file_that_vanishes(tmp_path: Path) -> None:
    path = plant(tmp_path, {"power1_average": "5"}) / "power1_average"

    def work() -> None:
        path.unlink()
        time.sleep(0.2)  # twenty readings

    with pytest.raises(DeviceError, match="power1_average: No such file"):
        Meter(path).over(work)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("battery_level", "5", "not known as a meter. Name a file energy_uj or"),
        ("energy_uj.txt", "5", "not known as a meter"),
        ("energy_uj", "", "holds no number"),
        ("power2_input", "full", "holds no number"),
        ("energy_uj", None, "No such file or directory. Name a meter that this user may read"),
    ],
)
def test_other_files_are_no_meters(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    if content is not None:
        plant(tmp_path, {name: content})
    with pytest.raises(DeviceError, match=says) as error:
        Meter(tmp_path / name)
    assert "\n" not in str(error.value)


def test_energy_of_inferences_and_of_idleness(tmp_path: Path) -> None:
    calls: list[int] = []
    # Idle from 0 to 1 J, then at work from 1 to 4 J.
    meter = counter(tmp_path, [0, 1_000_000, 1_000_000, 4_000_000])
    found = measure_energy(meter, lambda: (calls.append(1), time.sleep(0.01)), 0.05)
    assert found.inferences == len(calls) >= 1
    assert (found.joules, found.readings_per_s) == (3.0, None)
    assert found.seconds >= 0.05
    assert 0 < found.idle_watts <= 1 / 0.05
    made = Energy(seconds=2.0, inferences=100, joules=3.0, idle_watts=0.5, readings_per_s=None)
    assert (made.mj, made.above_idle_mj) == (30.0, 20.0)
