import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from glinthawk.config import BatchConfig
from glinthawk.errors import GlinthawkError, InvalidConfig, PeerUnavailable
from glinthawk.gateway.launcher import Launcher, ThreadShares, build_environment, share_threads

UNREACHABLE = "127.0.0.1:9"
WAIT_S = 120.0


def make_config(tmp_path: Path, **settings: object) -> BatchConfig:
    return BatchConfig.model_validate(
        {"input": tmp_path / "in", "output": tmp_path / "out", "kv_memory": "1MiB", **settings}
    )


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    made = Launcher(make_config(tmp_path, attention_workers=2), gateway_address=UNREACHABLE)
    yield made
    made.stop()


def find_children() -> dict[int, list[str]]:
    """Return the command line of each living child of this process, by its id."""
    found = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child.pid] = child.cmdline()
    return found


def find_child(name: str) -> int:
    (pid,) = (pid for pid, words in find_children().items() if name in words)
    return pid


def wait_until_refused(launcher: Launcher, *, error: type[GlinthawkError] = PeerUnavailable) -> str:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            launcher.check()
        except error as refusal:
            return str(refusal)
        time.sleep(0.02)
    raise AssertionError("no process ended")


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        (None, ThreadShares(stage=4, attention=2)),
        ("3", ThreadShares(stage=3, attention=3)),
        ("stage=5", ThreadShares(stage=5, attention=2)),
        ("stage=5, attention=1", ThreadShares(stage=5, attention=1)),
    ],
)
def test_threads_are_shared_out_within_each_role(text: str | None, shares: ThreadShares) -> None:
    assert share_threads(text, num_cores=8, num_stages=2, num_workers=4) == shares


def test_every_process_has_a_thread_where_cores_are_few() -> None:
    shares = share_threads(None, num_cores=2, num_stages=4, num_workers=3)
    assert shares == ThreadShares(stage=1, attention=1)


@pytest.mark.parametrize("text", ["", "0", "-1", "many", "gpu=1", "stage=", "stage=0", "1,²"])
def test_wrong_threads_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidConfig, match="stage=2,attention=1"):
        share_threads(text, num_cores=8, num_stages=1, num_workers=1)


def test_no_process_gets_threads_that_spin_or_settings_meant_for_the_command() -> None:
    environment = build_environment(
        {
            "PATH": "/bin",
            "GLINTHAWK_METRICS_PORT": "9100",
            "GLINTHAWK_GRPC_PORT": "7000",
            "GLINTHAWK_STAGE_MAX_ROWS": "64",
            "OMP_NUM_THREADS": "64",
        },
        threads=3,
    )
    assert environment["PATH"] == "/bin"
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["GOMP_SPINCOUNT"] == "0"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["TOKENIZERS_PARALLELISM"] == "false"
    assert environment["GLINTHAWK_STAGE_MAX_ROWS"] == "64"
    assert "GLINTHAWK_METRICS_PORT" not in environment
    assert "GLINTHAWK_GRPC_PORT" not in environment


def test_processes_get_what_the_command_was_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    class Spawned:
        def __init__(self, name: str, command: list[str], environment: dict[str, str]) -> None:
            commands.append(command)

    monkeypatch.setattr("glinthawk.gateway.launcher._Child", Spawned)
    config = make_config(
        tmp_path,
        stages=2,
        model="some/model",
        revision="v2",
        device="cpu",
        dtype="float32",
        transport="grpc",
        secret_file=tmp_path / "secret",
        kv_memory="3MiB",
        threads="stage=2,attention=1",
    )
    Launcher(config, gateway_address="127.0.0.1:7070").start()
    attention, *stages = (dict(zip(words[5::2], words[6::2], strict=True)) for words in commands)
    for command in commands:
        assert command[:3] == [sys.executable, "-m", "glinthawk"]
        assert command[4] == "--exit-with-parent"
    for options in (attention, *stages):
        assert options["--gateway"] == "127.0.0.1:7070"
        assert options["--transport"] == "grpc"
        assert options["--secret-file"] == str(tmp_path / "secret")
    assert attention["--kv-memory"] == str(3 << 20)
    assert attention["--threads"] == "1"
    assert [options["--stage"] for options in stages] == ["0", "1"]
    assert stages[1]["--threads"] == "2"
    assert stages[1]["--num-stages"] == "2"
    assert stages[1]["--model"] == "some/model"
    assert stages[1]["--revision"] == "v2"
    assert stages[1]["--dtype"] == "float32"
    assert stages[1]["--device"] == "cpu"


def test_a_process_that_ends_early_is_named_with_its_code_and_last_words(tmp_path: Path) -> None:
    config = make_config(tmp_path, model=str(tmp_path / "no-such-model"))
    launcher = Launcher(config, gateway_address=UNREACHABLE)
    try:
        launcher.start()
        message = wait_until_refused(launcher, error=InvalidConfig)
    finally:
        launcher.stop()
    assert "stage-0 ended with exit code 2" in message
    assert "no-such-model" in message


def test_a_process_that_was_killed_is_named_with_its_signal(launcher: Launcher) -> None:
    launcher.start()
    launcher.check()
    os.kill(find_child("attention-1"), signal.SIGKILL)
    assert "attention-1 was killed by SIGKILL" in wait_until_refused(launcher)


def test_stop_leaves_no_process_not_even_a_deaf_one(launcher: Launcher) -> None:
    launcher.start()
    deaf = find_child("attention-0")
    os.kill(deaf, signal.SIGSTOP)
    launcher.stop()
    assert not [words for words in find_children().values() if "attention" in words]
    launcher.check()


KILLED_PARENT = """
import os, signal, sys, time
from pathlib import Path
from glinthawk.config import BatchConfig
from glinthawk.gateway.launcher import Launcher

config = BatchConfig(input=Path("in"), output=Path("out"), attention_workers=2, kv_memory=1 << 20)
Launcher(config, gateway_address="127.0.0.1:9").start()
children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
print(children, flush=True)
time.sleep(float(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.2, 2.5])
def test_processes_end_with_a_killed_parent_however_young_they_are(
    seconds: float,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_PARENT, str(seconds)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    children = [int(pid) for pid in done.stdout.split()]
    assert len(children) == 3
    deadline = time.monotonic() + WAIT_S
    while any(is_alive(pid) for pid in children):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def revive_for(launcher: Launcher, seconds: float, until: Callable[[], bool] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (until is not None and until()):
        launcher.revive()
        time.sleep(0.05)


def test_a_process_that_ended_is_started_again_after_a_pause(launcher: Launcher) -> None:
    launcher.start()
    first = find_child("attention-0")
    os.kill(first, signal.SIGKILL)

    def is_there_again() -> bool:
        return any(
            "attention-0" in words and pid != first for pid, words in find_children().items()
        )

    with capture_logs() as logs:
        revive_for(launcher, WAIT_S, is_there_again)
    (ended,) = (log for log in logs if log["event"] == "process_ended")
    assert ended["reason"] == "attention-0 was killed by SIGKILL"
    assert find_child("attention-0") != first
    assert find_child("attention-1")


def test_a_process_with_a_wrong_configuration_is_not_started_again(tmp_path: Path) -> None:
    config = make_config(tmp_path, model=str(tmp_path / "no-such-model"))
    launcher = Launcher(config, gateway_address=UNREACHABLE)
    try:
        launcher.start()
        with pytest.raises(InvalidConfig, match="no-such-model"):
            revive_for(launcher, WAIT_S)
    finally:
        launcher.stop()
