"""Where a measurement ran, and how much CPU a process has used."""

import os
import platform
from pathlib import Path
from typing import TypedDict

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Machine(TypedDict):
    """The machine, as far as it explains the figures. `load_average` is of the last minute before the start."""

    cores: int
    cpu: str
    python: str
    load_average: float


def machine() -> Machine:
    """The machine as it is now."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def cpu_ms(pid: int) -> float:
    """CPU milliseconds that a process and its living children have used so far, user and system, all of their threads."""
    # The name in parentheses may hold spaces; fields 14 and 15 of the manual are the 12th and 13th after it.
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return (int(fields[11]) + int(fields[12])) * 1000 / _TICKS_PER_S + sum(cpu_ms(int(child)) for child in children)
