"""What a benchmark ran on, as its JSON tells it."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from glinthawk import __version__

_TELLING_VARIABLES = ("GOMP_", "KMP_", "MKL_", "OMP_", "VLLM_")


def describe_environment(*packages: str) -> dict[str, Any]:
    """Return commit, hardware and versions; of `packages` those that are installed.

    variables: those of the environment that change how engines use threads and memory.
    """
    return {
        "glinthawk": __version__,
        "commit": _find_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _find_cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "packages": {name: found for name in packages if (found := _find_version(name))},
        "variables": {
            name: value for name, value in os.environ.items() if name.startswith(_TELLING_VARIABLES)
        },
    }


def _find_cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _find_commit() -> str | None:
    """Return the commit of the sources, with + if they were changed; None where unknown."""
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10.0,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
