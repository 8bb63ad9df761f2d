"""A whole life of a job, from its file to its output, takes memory that does not grow with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import sys
from pathlib import Path
from unit.gateway.jobs import factories
from unit.gateway.jobs.factories import Gateway, build_line

factories.WAIT_S = 3600.0
num_lines = int(sys.argv[2])
body = {"prompt": "short", "max_tokens": 1}
with Gateway(Path(sys.argv[1])) as gateway:
    batch = gateway.run(build_line(f"id-{n}", body=body) for n in range(num_lines))
    assert batch.counts.completed == num_lines
status = Path("/proc/self/status").read_text()
print("peak", status.partition("VmHWM:")[2].split()[0])
"""

KIB_PER_MIB = 1024


def measure_peak(folder: Path, num_lines: int) -> int:
    """Return the peak KiB of a process that runs a job."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(num_lines)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout.rpartition("peak ")[2])


@pytest.mark.acceptance
@pytest.mark.parametrize(("few", "many"), [(10_000, 100_000)])
def test_memory_of_a_whole_job_stays_flat(tmp_path: Path, few: int, many: int) -> None:
    small, large = (measure_peak(tmp_path / str(n), n) for n in (few, many))
    assert large - small < 64 * KIB_PER_MIB
