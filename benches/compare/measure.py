"""Runs one command and says what it took, and what the machine is.

Invariants:
- Nothing but the command lies between the two looks at the clock; `sync` and a pause come before.
- Memory comes from GNU time in a round that is not timed. A process that Python starts inherits
  Python's own peak (`wait4` reports the larger of the two), so it would hide small programs.
"""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 300
PAUSE_SECONDS = 0.1
GNU_TIME = "/usr/bin/time"


class NotMeasured(Exception):
    """A peer cannot be measured; the text is the reason that the page gives."""


@dataclass
class Taken:
    """What one command took."""

    wall_seconds: float
    cpu_seconds: float
    rss_kib: int | None


def run(
    argv: list[str], folder: Path, environment: dict[str, str], log: Path, memory: bool
) -> Taken:
    """Runs `argv` in `folder` after a sync. With `memory`, the peak of its largest process."""
    report = log.with_suffix(".rss")
    if memory and os.path.exists(GNU_TIME):
        argv = [GNU_TIME, "-q", "-f", "%M", "-o", str(report), "--", *argv]
    else:
        memory = False
    os.sync()
    time.sleep(PAUSE_SECONDS)
    with open(log, "wb") as output:
        start = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise NotMeasured(f"cannot be started: {error.strerror}") from error
        signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(TIMEOUT_SECONDS)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # Whoever stops us must not leave a command behind that goes on in our folders.
            os.killpg(process.pid, signal.SIGKILL)
            raise
        taken = time.perf_counter() - start
        signal.alarm(0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        reason = "took too long" if taken >= TIMEOUT_SECONDS else f"exit {process.returncode}"
        raise NotMeasured(f"{reason}: {last_line(log, folder)}")
    rss = int(report.read_text().split()[-1]) if memory else None
    return Taken(taken, usage.ru_utime + usage.ru_stime, rss)


def last_line(log: Path, folder: Path) -> str:
    """The last thing that a command said, without colours and paths of this machine."""
    text = re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", log.read_text(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = lines[-1] if lines else "it said nothing"
    return re.sub(r"(/[\w.@+-]+){2,}", "…", line)[:160]


def output_of(argv: list[str]) -> str:
    """What a command prints, or nothing if it cannot be run."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def machine(place: Path) -> dict[str, object]:
    """Cores, memory, kernel and filesystem; nothing that names the machine or its folders."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    release = Path("/etc/os-release")
    names = dict(
        line.split("=", 1) for line in release.read_text().splitlines() if "=" in line
    ) if release.exists() else {}
    filesystem, device, options = mount_of(place)
    return {
        "processor": models[0] if models else os.uname().machine,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20),
        # The words after the version name whoever built the kernel.
        "kernel": re.match(r"[\d.]+", os.uname().release).group(),
        "system": names.get("PRETTY_NAME", "Linux").strip('"'),
        "filesystem": filesystem,
        "journal": has_journal(filesystem, device),
        "loop": device.startswith("loop"),
        "direct_io": loop_is_direct(device),
        "mount_options": options,
        "root": os.geteuid() == 0,
    }


def mount_of(place: Path) -> tuple[str, str, str]:
    """Type, device and options of the filesystem that holds `place`."""
    number = os.stat(place).st_dev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            kind, device = after.split()[:2]
            return kind, os.path.basename(device), before.split()[5]
    return "unknown", "", ""


def has_journal(filesystem: str, device: str) -> bool:
    """Only an ext4 can be without one."""
    if filesystem != "ext4":
        return True
    return any(Path("/proc/fs/jbd2").glob(f"{device}-*"))


def loop_is_direct(device: str) -> bool:
    """Whether a loop device goes around the page cache of its image."""
    flag = Path(f"/sys/block/{device}/loop/dio")
    return flag.exists() and flag.read_text().strip() == "1"
