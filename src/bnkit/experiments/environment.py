"""What the numbers were made with: versions, machine, date."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from bnkit.experiments.fingerprints import versions


def environment() -> dict[str, str]:
    """Return versions, machine and date, as names and values for people to read.

    >>> sorted(environment())
    ['bnkit', 'cores', 'date', 'machine', 'processor', 'python', 'torch']
    """
    return {
        **versions(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(usable_cores()),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # elsewhere than on Linux


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
