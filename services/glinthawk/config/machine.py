"""What this process may use of the machine: cores and memory, also within a container's limits.

A container sees all of its machine's cores and memory, whatever it is granted; the kernel's
control groups say how much that is. Knows both of their versions, and nothing of containers.
"""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where a container finds the control group that it runs in."""


def count_cores() -> int:
    """Return the cores that this process may use; of a limit in fractions the whole ones.

    One thread more than whole cores would have all of them stand still for a part of each period.
    """
    cores = len(os.sched_getaffinity(0))
    limit = read_cpu_limit(CGROUPS)
    return cores if limit is None else max(1, min(cores, int(limit)))


def count_memory() -> int:
    """Return the bytes of memory that this process may use."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = read_memory_limit(CGROUPS)
    return physical if limit is None else min(physical, limit)


def read_cpu_limit(folder: Path) -> float | None:
    """Return the cores that the control group in `folder` is granted, None without a limit."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _read(folder / "cpu" / "cpu.cfs_quota_us")
        period = _read(folder / "cpu" / "cpu.cfs_period_us")
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def read_memory_limit(folder: Path) -> int | None:
    """Return the bytes that the control group in `folder` may have, None without a limit."""
    limit = _read(folder / "memory.max") or _read(folder / "memory" / "memory.limit_in_bytes")
    return int(limit) if limit.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
