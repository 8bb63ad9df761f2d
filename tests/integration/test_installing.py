"""What is installed for each role: no torch for gateway and worker, no compiler needed at all."""

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from batch_runs import completion, read_lines, write_lines
from factories_models import make_tiny_model
from glinthawk.bench.fleet import find_ports

ROOT = Path(__file__).parents[2]
INSTALL_S = 600
WAIT_S = 180.0


def install(folder: Path, what: str, **environment: str) -> Path:
    """Make an environment with `what` in it and return its folder of programs."""
    venv.create(folder, with_pip=True)
    subprocess.run(
        [
            *(folder / "bin/python", "-m", "pip", "install", "--quiet", what),
            # Nothing of it is built where the tree's own extension is.
            f"--config-settings=build-dir={folder / 'build'}",
        ],
        cwd=ROOT,
        check=True,
        timeout=INSTALL_S,
        env={**clean_environment(), **environment},
    )
    return folder / "bin"


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def has_module(programs: Path, name: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    command = [programs / "python", "-c", code]
    return subprocess.run(command, check=False, env=clean_environment()).returncode == 0


@pytest.mark.timeout(INSTALL_S)
def test_gateway_and_worker_run_without_torch(tmp_path: Path) -> None:
    programs = install(tmp_path / "env", ".[gateway]")
    assert not has_module(programs, "torch")
    assert has_module(programs, "glinthawk.attention.kernel._kernel")
    model = make_tiny_model("llama2", tmp_path / "model")
    source = write_lines(tmp_path / "in.jsonl", [completion("a", [4, 5, 6], max_tokens=6)])
    output = tmp_path / "out.jsonl"
    address = f"127.0.0.1:{find_ports(1)[0]}"
    peer = ("--gateway", address, "--log-level", "error")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "glinthawk", "stage", "--model", str(model), *peer]
        ),
        subprocess.Popen(
            [programs / "glinthawk", "attention", "--backend", "kernel", *peer],
            env=clean_environment(),
        ),
    ]
    try:
        done = subprocess.run(
            [
                *(programs / "glinthawk", "batch", source, "--output", output),
                *("--model", model, "--listen", address),
            ],
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
            env=clean_environment(),
        )
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(WAIT_S) for process in processes]
    assert done.returncode == 0, done.stderr
    assert codes == [0, 0]
    assert len(read_lines(output)[0]["response"]["body"]["choices"][0]["token_ids"]) == 6


@pytest.mark.timeout(INSTALL_S)
def test_without_a_compiler_it_installs_and_says_that_it_is_slow(tmp_path: Path) -> None:
    programs = install(tmp_path / "env", ".", CXX="/bin/false", CC="/bin/false")
    assert not has_module(programs, "glinthawk.attention.kernel._kernel")
    code = (
        "from glinthawk.attention.selection import select_backend\n"
        "from glinthawk.core.dtype import DType\n"
        "from glinthawk.core.geometry import KVGeometry\n"
        "geometry = KVGeometry(1, 2, 1, 32, DType.FLOAT16, (None,))\n"
        "print(select_backend(geometry, 4, 1).name)\n"
    )
    done = subprocess.run(
        [programs / "python", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean_environment(),
    )
    assert "reference" in done.stdout
    assert "slow" in done.stdout + done.stderr
    refused = subprocess.run(
        [programs / "glinthawk", "attention", "--backend", "kernel"],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
        env=clean_environment(),
    )
    assert refused.returncode == 2
    assert "kernel" in refused.stderr
