"""How a gateway ends: in bounded time whatever hangs, and never by half."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.fleet import find_ports

WAIT_S = 180.0

DEFECTIVE = """
import sys

from glinthawk.cli import main
from {module} import {owner}


def fail(*_):
    raise ZeroDivisionError("a prompt")


{owner}.{method} = fail
sys.argv[0] = "glinthawk"
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3")


@pytest.mark.parametrize(
    ("module", "owner", "method", "thread"),
    [
        ("glinthawk.wire.membership_server", "MembershipServer", "check_leases", "leases"),
        ("glinthawk.gateway.worker_sizes", "SizeBook", "keep", "worker-sizes"),
    ],
)
def test_a_gateway_ends_with_a_message_when_a_thread_of_it_has_a_defect(
    model: Path, tmp_path: Path, module: str, owner: str, method: str, thread: str
) -> None:
    http, listen, control = find_ports(3)
    program = DEFECTIVE.format(module=module, owner=owner, method=method)
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, "gateway", "--model", str(model)),
            *("--data-dir", str(tmp_path / "data"), "--port", str(http)),
            *("--listen", f"127.0.0.1:{listen}", "--control-port", str(control)),
            *("--log-format", "json"),
        ],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 1, done.stderr
    assert f"a defect in thread '{thread}' (ZeroDivisionError)" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if '"thread_defect"' in line]
    assert json.loads(line)["thread"] == thread
    assert "a prompt" not in done.stderr
