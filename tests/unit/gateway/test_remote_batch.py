"""The batch command at a gateway: a real API and store; the test plays who runs the batches."""

import ast
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glinthawk.config import RemoteBatchConfig
from glinthawk.errors import GlinthawkError, InvalidConfig, InvariantBroken, PeerUnavailable
from glinthawk.gateway import remote_batch
from glinthawk.gateway.bodies import build_line_ids, build_output_line, build_unanswered_line
from glinthawk.gateway.remote_batch import run_remote_batch
from glinthawk.gateway.sidecar import (
    RemoteRun,
    RunIdentity,
    Sidecar,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)
from glinthawk.gateway.store.records import BatchError, BatchStatus, FilePurpose
from unit.gateway.http.serving import Served, serve, wait_until

IDS = build_line_ids("ab" * 32, 1)
ANSWER = build_output_line(IDS, "a", 200, {"text": "yes"})
ERROR = build_output_line(IDS, "b", 400, {"error": {"message": "no"}})
UNANSWERED = build_unanswered_line(IDS, "b", code="batch_expired", message="too late")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("data")) as served:
        yield served


@pytest.fixture
def served(shared: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    monkeypatch.setattr(remote_batch, "POLL_S", 0.02)
    monkeypatch.setattr(remote_batch, "FETCH_AGAIN_S", 0.1)
    shared.jobs.created.clear()
    return shared


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_input(tmp_path / "in.jsonl", "/v1/completions", "/v1/completions")


def write_input(path: Path, *urls: str) -> Path:
    body = {"model": "tiny", "prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    lines = [
        {"custom_id": f"c{index}", "method": "POST", "url": url, "body": body}
        for index, url in enumerate(urls)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def build_config(served: Served, source: Path, **more: Any) -> RemoteBatchConfig:
    return RemoteBatchConfig(
        input=source, output=source.parent / "out.jsonl", gateway=served.url, **more
    )


def end_batch(served: Served, status: BatchStatus, output: bytes, errors: bytes = b"") -> None:
    """Wait for a batch, then end it."""
    wait_until(lambda: bool(served.jobs.created), "a batch is made")
    files = {}
    for name, content in (("output_file_id", output), ("error_file_id", errors)):
        if content:
            file = served.store.add_file(
                [content], purpose=FilePurpose.BATCH_OUTPUT, filename="out.jsonl"
            )
            files[name] = file.id
    more = {"errors": (BatchError("bad", "it is bad", 1),)} if status == "failed" else {}
    served.store.update_batch(
        served.jobs.created[-1],
        only_from=[BatchStatus.VALIDATING],
        status=status,
        total=2,
        **files,
        **more,
    )


def run_while(served: Served, config: RemoteBatchConfig, play: Callable[[], None]) -> int:
    thread = threading.Thread(target=play)
    thread.start()
    try:
        return run_remote_batch(config, api_key=None)
    finally:
        thread.join()


def test_answers_come_before_errors_and_a_whole_output_needs_no_gateway(
    served: Served, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = build_config(served, source)
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER, ERROR)  # noqa: E731
    assert run_while(served, config, end) == 0
    assert config.output.read_bytes() == ANSWER + ERROR
    (batch_id,) = served.jobs.created
    assert served.store.get_batch(batch_id).endpoint == "/v1/completions"
    assert f"batch {batch_id} is completed" in capfd.readouterr().err
    served.store.delete_file(str(served.store.get_batch(batch_id).output_file_id))
    assert run_remote_batch(config, api_key=None) == 0
    assert config.output.read_bytes() == ANSWER + ERROR
    assert served.jobs.created == [batch_id]


def test_lines_that_expired_have_an_answer_and_the_command_fails(
    served: Served, source: Path
) -> None:
    config = build_config(served, source)
    end = lambda: end_batch(served, BatchStatus.EXPIRED, ANSWER, UNANSWERED)  # noqa: E731
    assert run_while(served, config, end) == 1
    answered, expired = map(json.loads, config.output.read_text().splitlines())
    assert answered["response"]["status_code"] == 200
    assert expired["response"]["status_code"] == 503
    assert expired["response"]["body"]["error"]["code"] == "batch_expired"
    assert run_remote_batch(config, api_key=None) == 1


def test_a_batch_that_failed_leaves_no_trace_so_a_mended_input_runs(
    served: Served, source: Path
) -> None:
    config = build_config(served, source)
    end = lambda: end_batch(served, BatchStatus.FAILED, b"")  # noqa: E731
    with pytest.raises(GlinthawkError, match="it is bad"):
        run_while(served, config, end)
    served.jobs.created.clear()
    write_input(source, "/v1/chat/completions")
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER)  # noqa: E731
    assert run_while(served, config, end) == 0


def test_a_batch_is_found_by_its_mark(served: Served, source: Path) -> None:
    config = build_config(served, source)
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER)  # noqa: E731
    assert run_while(served, config, end) == 0
    path = sidecar_path(config.output)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.remote is not None
    write_sidecar(path, Sidecar(sidecar.identity, 1, RemoteRun(sidecar.remote.mark)))
    config.output.write_bytes(ANSWER[:10])
    assert run_remote_batch(config, api_key=None) == 0
    assert config.output.read_bytes() == ANSWER
    assert len(served.jobs.created) == 1


@pytest.mark.parametrize("torn_at", [0, 10, len(ANSWER) - 1, len(ANSWER), len(ANSWER) + 10])
def test_a_command_that_was_killed_while_it_fetched_begins_the_output_again(
    served: Served, source: Path, torn_at: int
) -> None:
    config = build_config(served, source)
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER, ERROR)  # noqa: E731
    assert run_while(served, config, end) == 0
    path = sidecar_path(config.output)
    sidecar = read_sidecar(path)
    assert sidecar is not None
    assert sidecar.remote is not None
    write_sidecar(path, replace(sidecar, remote=replace(sidecar.remote, status=None)))
    config.output.write_bytes((ANSWER + ERROR)[:torn_at])
    assert run_remote_batch(config, api_key=None) == 0
    assert config.output.read_bytes() == ANSWER + ERROR
    assert len(served.jobs.created) == 1


@pytest.mark.parametrize(
    ("errors", "kind"),
    [(ERROR + ERROR[:20], PeerUnavailable), (ERROR + b"{}\n", InvariantBroken)],
)
def test_a_file_that_is_not_whole_leaves_no_part_of_itself(
    served: Served, source: Path, errors: bytes, kind: type[GlinthawkError]
) -> None:
    config = build_config(served, source, gateway_timeout_s=1.0)
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER, errors)  # noqa: E731
    with pytest.raises(kind):
        run_while(served, config, end)
    assert config.output.read_bytes() == ANSWER
    with pytest.raises(kind):
        run_remote_batch(config, api_key=None)
    assert config.output.read_bytes() == ANSWER


@pytest.mark.parametrize(
    ("change", "said"),
    [({"priority": 4}, "another priority"), ({"completion_window": "7d"}, "completion_window")],
)
def test_another_run_is_refused_unless_it_may_overwrite(
    served: Served, source: Path, change: dict[str, Any], said: str
) -> None:
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER)  # noqa: E731
    assert run_while(served, build_config(served, source), end) == 0
    with pytest.raises(InvalidConfig, match=said):
        run_remote_batch(build_config(served, source, **change), api_key=None)
    served.jobs.created.clear()
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ERROR)  # noqa: E731
    assert run_while(served, build_config(served, source, overwrite=True, **change), end) == 0
    assert build_config(served, source).output.read_bytes() == ERROR


def test_an_output_of_a_local_run_or_of_nobody_knows_whom_is_kept(
    served: Served, source: Path
) -> None:
    config = build_config(served, source)
    config.output.write_text("dear\n")
    with pytest.raises(InvalidConfig, match="unknown run"):
        run_remote_batch(config, api_key=None)
    summary = remote_batch.summarize_input(source)
    write_sidecar(
        sidecar_path(config.output), Sidecar(RunIdentity(summary.sha256, "m", {"seed": 0}), 3)
    )
    with pytest.raises(InvalidConfig, match="a run without a gateway"):
        run_remote_batch(config, api_key=None)
    assert config.output.read_text() == "dear\n"
    assert served.jobs.created == []


def test_an_input_of_two_endpoints_is_refused_before_anything_is_sent(
    served: Served, tmp_path: Path
) -> None:
    source = write_input(tmp_path / "in.jsonl", "/v1/completions", "/v1/chat/completions")
    config = build_config(served, source)
    with pytest.raises(InvalidConfig, match=r"line 1 .* line 2 "):
        run_remote_batch(config, api_key=None)
    assert read_sidecar(sidecar_path(config.output)) is None


def test_an_interrupt_leaves_the_batch_and_names_it(
    served: Served, source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = build_config(served, source)

    def interrupt() -> None:
        def is_noted() -> bool:
            sidecar = read_sidecar(sidecar_path(config.output))
            return sidecar is not None and bool(sidecar.remote and sidecar.remote.batch_id)

        wait_until(is_noted, "the batch is noted")
        os.kill(os.getpid(), signal.SIGINT)

    assert run_while(served, config, interrupt) == 130
    (batch_id,) = served.jobs.created
    assert f"interrupted: batch {batch_id} goes on" in capfd.readouterr().err
    assert served.store.get_batch(batch_id).status is BatchStatus.VALIDATING


def test_two_commands_never_follow_one_output(served: Served, source: Path) -> None:
    config = build_config(served, source)
    refused: list[BaseException] = []

    def run_second() -> None:
        wait_until(lambda: bool(served.jobs.created), "a batch is made")
        try:
            run_remote_batch(config, api_key=None)
        except InvalidConfig as error:
            refused.append(error)
        end_batch(served, BatchStatus.COMPLETED, ANSWER)

    assert run_while(served, config, run_second) == 0
    assert "being written by another command" in str(refused[0])


def test_no_model_library_is_loaded(served: Served, source: Path) -> None:
    end = lambda: end_batch(served, BatchStatus.COMPLETED, ANSWER)  # noqa: E731
    config = build_config(served, source)
    assert run_while(served, config, end) == 0
    program = (
        "import sys; from glinthawk import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted(sys.modules))"
    )
    arguments = ["batch", str(source), "--output", str(config.output), "--gateway", served.url]
    shown = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert not {"torch", "transformers", "tokenizers"} & set(ast.literal_eval(shown.stdout))
