# [Task]: T041 [From]: specs/requirements.md
"""CPU and memory of processes, children included, as Linux's /proc has them."""

import os
import re
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:  # It grows meanwhile.
        found += children.get(parent, [])
    return found


def cpu(pid: int) -> float:
    """Seconds of CPU that a process, its children and those that have ended have used so far."""
    # utime, stime, and the same two of children that were waited for.
    return sum(sum(map(int, _stat(member)[11:15])) for member in family(pid)) / _TICKS


def busy() -> float:
    """Seconds of CPU that everything on this machine has used so far, its cores added up."""
    user, nice, system, _idle, _iowait, *interrupts = (
        Path("/proc/stat").read_text().partition("\n")[0].split()[1:8]
    )
    return sum(map(int, (user, nice, system, *interrupts))) / _TICKS


def peak_memory(pid: int) -> float:
    """The most that one process of these has had in memory, in MiB."""
    return max(_kib(member, "status", "VmHWM") for member in family(pid)) / 1024


def memory(pid: int) -> float:
    """Of a process and its children, in MiB, what they share counted once."""
    return sum(_kib(member, "smaps_rollup", "Pss") for member in family(pid)) / 1024


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on, which is the third; none if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    # The second is the command in brackets, which may hold anything.
    return text.rpartition(")")[2].split()


def _kib(pid: int, file: str, name: str) -> int:
    [value] = re.findall(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/{file}").read_text(), re.M)
    return int(value)
