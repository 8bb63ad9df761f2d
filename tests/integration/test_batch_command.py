"""The batch command as users meet it: errors, resuming, signals, lost processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from batch_runs import batch_command, chat, completion, read_lines, run_batch, write_lines
from factories_models import make_tiny_model
from glinthawk.bench.fleet import find_ports

WAIT_S = 180
NUM_REQUESTS = 250


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama3", tmp_path_factory.mktemp("model") / "llama3")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {WAIT_S} s"
        time.sleep(0.05)


def start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "stderr.txt").open("ab") as stderr:
        return subprocess.Popen(command, stderr=stderr, stdin=subprocess.DEVNULL)


def children_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def make_job(model: Path, folder: Path, num_requests: int) -> tuple[list[str], Path, Path]:
    """Return the command for a job of many requests, its output and its folder."""
    lines = [
        completion(
            *(f"r{index}", [5, 6, 7, index % 300 + 3]),
            max_tokens=60,
            seed=index,
            ignore_eos=True,
        )
        for index in range(num_requests)
    ]
    source = write_lines(folder / "in.jsonl", lines)
    output = folder / "out.jsonl"
    options = ("--model", str(model), "--dtype", "float32", "--stages", "2")
    return batch_command(source, output, *options), output, folder


@pytest.fixture
def job(model: Path, tmp_path: Path) -> tuple[list[str], Path, Path]:
    """A job that can be run to its end."""
    return make_job(model, tmp_path, NUM_REQUESTS)


@pytest.fixture
def long_job(model: Path, tmp_path: Path) -> tuple[list[str], Path, Path]:
    """A job that is not done before something has happened to it."""
    return make_job(model, tmp_path, 6_000)


def is_running(process: psutil.Process) -> bool:
    """Tell whether a process is there and not just waiting to be reaped."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def has_some_lines(output: Path) -> bool:
    return output.exists() and output.read_bytes().count(b"\n") >= 5


def test_bad_lines_are_error_lines_and_the_others_go_on(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    good = json.dumps(completion("good", [4, 5, 6], max_tokens=3, temperature=0))
    bad = [
        '{"custom_id": "torn"',
        json.dumps({**completion("", [4]), "custom_id": 7}),
        good,
        "",
        good,
        json.dumps(completion("hot", [4], temperature=9)),
        json.dumps(completion("tools", [4], tools=[{"type": "function"}])),
        json.dumps(completion("long", [4] * 10, max_tokens=10**6)),
    ]
    source.write_text("\n".join(bad) + "\n")
    output = tmp_path / "out.jsonl"
    command = batch_command(source, output, "--model", str(model))
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    lines = read_lines(output)
    assert len(lines) == 7
    by_id = {line["custom_id"]: line for line in lines if line["custom_id"] is not None}
    assert by_id["good"]["response"]["status_code"] == 200
    for custom_id, param in (("hot", "temperature"), ("tools", "tools"), ("long", "max_tokens")):
        response = by_id[custom_id]["response"]
        assert response["status_code"] == 400
        assert response["body"]["error"]["param"] == param
        assert by_id[custom_id]["error"] is None
    anonymous = [line for line in lines if line["custom_id"] is None]
    messages = [line["response"]["body"]["error"]["message"] for line in anonymous]
    assert [message.split(":")[0] for message in messages] == ["line 1", "line 2", "line 5"]


def test_a_request_that_no_worker_can_hold_is_refused_with_both_sizes(
    model: Path, tmp_path: Path
) -> None:
    lines = [
        completion("small", [4, 5], max_tokens=4, temperature=0),
        completion("large", [4] * 1000, max_tokens=500, temperature=0),
    ]
    run = run_batch(
        tmp_path, lines, "--model", str(model), "--kv-memory", "1MiB", "--dtype", "float32"
    )
    assert run.exit_code == 0, run.stderr
    assert run.answers["small"]["response"]["status_code"] == 200
    refused = run.answers["large"]["response"]
    assert refused["status_code"] == 400
    assert "1500" in refused["body"]["error"]["message"]


def test_usage_counts_and_finish_reasons(model: Path, tmp_path: Path) -> None:
    lines = [
        completion("length", [4, 5, 6], max_tokens=7, n=3, seed=1, ignore_eos=True),
        completion("echo", [4, 5, 6], max_tokens=0, echo=True, logprobs=2),
        chat("chat", "Say something.", max_tokens=5, logprobs=True, top_logprobs=3),
    ]
    run = run_batch(tmp_path, lines, "--model", str(model), "--dtype", "float32")
    assert run.exit_code == 0, run.stderr
    body = run.body("length")
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 21, "total_tokens": 24}
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length"] * 3
    texts = {tuple(choice["token_ids"]) for choice in body["choices"]}
    assert len(texts) == 3, "choices of one request differ"
    echo = run.body("echo")["choices"][0]["logprobs"]
    assert len(echo["token_logprobs"]) == 3
    assert echo["token_logprobs"][0] is None
    assert all(value < 0 for value in echo["token_logprobs"][1:])
    content = run.body("chat")["choices"][0]["logprobs"]["content"]
    assert all(len(item["top_logprobs"]) == 3 for item in content)


def test_stop_tokens_and_stop_strings_end_a_text(model: Path, tmp_path: Path) -> None:
    free = completion("free", [9, 8, 7], max_tokens=30, temperature=0, ignore_eos=True)
    run = run_batch(tmp_path, [free], "--model", str(model), "--dtype", "float32", name="free")
    tokens, text = run.tokens("free"), run.body("free")["choices"][0]["text"]
    stop_token = tokens[5]
    stop_string = text[len(text) // 2 : len(text) // 2 + 3]
    lines = [
        completion(
            "token",
            [9, 8, 7],
            max_tokens=30,
            temperature=0,
            stop_token_ids=[stop_token],
            ignore_eos=True,
        ),
        completion(
            "string", [9, 8, 7], max_tokens=30, temperature=0, stop=stop_string, ignore_eos=True
        ),
    ]
    run = run_batch(tmp_path, lines, "--model", str(model), "--dtype", "float32")
    by_token = run.body("token")["choices"][0]
    assert by_token["finish_reason"] == "stop"
    assert by_token["token_ids"] == tokens[: tokens.index(stop_token) + 1]
    by_string = run.body("string")["choices"][0]
    assert by_string["finish_reason"] == "stop"
    assert by_string["text"] == text[: text.index(stop_string)]


def test_killed_and_started_again_it_goes_on(
    job: tuple[list[str], Path, Path], tmp_path: Path
) -> None:
    command, output, folder = job
    process = start(command, folder)
    wait_for(lambda: has_some_lines(output), "some output")
    children = children_of(process)
    assert len(children) >= 3
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_running, children)), "the end of all children")
    with output.open("ab") as file:
        file.write(b'{"id": "torn')
    before = read_lines_whole(output)
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    lines = read_lines(output)
    assert lines[: len(before)] == before
    assert sorted(line["custom_id"] for line in lines) == sorted(
        f"r{n}" for n in range(NUM_REQUESTS)
    )
    undisturbed = folder / "undisturbed.jsonl"
    again = [str(undisturbed) if part == str(output) else part for part in command]
    subprocess.run(again, capture_output=True, timeout=WAIT_S, check=True)
    expected = {line["custom_id"]: line for line in read_lines(undisturbed)}
    same = sum(tokens_of(line) == tokens_of(expected[line["custom_id"]]) for line in lines)
    assert same >= NUM_REQUESTS - 3, "the same request gives the same tokens after a restart"


def read_lines_whole(output: Path) -> list[dict[str, Any]]:
    whole = output.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


def tokens_of(line: dict[str, Any]) -> list[int]:
    tokens: list[int] = line["response"]["body"]["choices"][0]["token_ids"]
    return tokens


def test_an_output_of_another_run_is_refused(model: Path, tmp_path: Path) -> None:
    lines = [completion("a", [4, 5], max_tokens=2)]
    options = ("--model", str(model))
    assert run_batch(tmp_path, lines, *options).exit_code == 0
    other = run_batch(tmp_path, lines, *options, "--seed", "5")
    assert other.exit_code == 2
    assert "seed" in other.stderr
    assert run_batch(tmp_path, lines, *options, "--seed", "5", "--overwrite").exit_code == 0


def test_an_output_of_another_chat_template_is_refused(tmp_path: Path) -> None:
    model = make_tiny_model("smollm2", tmp_path / "model")
    lines = [chat("a", "Hello.", max_tokens=2)]
    options = ("--model", str(model))
    assert run_batch(tmp_path, lines, *options).exit_code == 0
    for path in model.glob("chat_template*"):
        path.write_text(path.read_text() + " ")
    other = run_batch(tmp_path, lines, *options)
    assert other.exit_code == 2
    assert "tokenizer" in other.stderr


def test_ctrl_c_ends_everything_with_130(long_job: tuple[list[str], Path, Path]) -> None:
    command, output, folder = long_job
    process = start(command, folder)
    wait_for(lambda: has_some_lines(output), "some output")
    children = children_of(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_S) == 130
    assert not any(map(is_running, children))


@pytest.mark.parametrize(
    ("role", "number"),
    [
        ("stage-1", signal.SIGKILL),
        ("attention-0", signal.SIGKILL),
        ("attention-0", signal.SIGSTOP),
        pytest.param("stage-1", signal.SIGSTOP, marks=pytest.mark.acceptance),
    ],
)
def test_a_lost_process_ends_the_run_and_is_named(
    long_job: tuple[list[str], Path, Path], role: str, number: signal.Signals
) -> None:
    command, output, folder = long_job
    process = start(command, folder)
    wait_for(lambda: has_some_lines(output), "some output")
    victim = next(child for child in children_of(process) if role in child.cmdline())
    victim.send_signal(number)
    assert process.wait(WAIT_S) == 1
    assert role in (folder / "stderr.txt").read_text()
    wait_for(lambda: not is_running(victim), "the end of the victim")


def test_listen_uses_processes_that_register(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion("a", [4, 5], max_tokens=4)])
    output = tmp_path / "out.jsonl"
    address = f"127.0.0.1:{find_ports(1)[0]}"
    roles = [
        [*("attention", "--name", "w0", "--kv-memory", "8MiB")],
        [*("stage", "--name", "s0", "--model", str(model), "--stage", "0", "--num-stages", "2")],
        [*("stage", "--name", "s1", "--model", str(model), "--stage", "1", "--num-stages", "2")],
    ]
    processes = [
        start([sys.executable, "-m", "glinthawk", *role, "--gateway", address], tmp_path)
        for role in roles
    ]
    try:
        command = batch_command(
            source, output, "--model", str(model), "--stages", "2", "--listen", address
        )
        # The processes outlive a run and serve the next one.
        for _ in range(2):
            done = subprocess.run(
                [*command, "--overwrite"],
                capture_output=True,
                text=True,
                timeout=WAIT_S,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert read_lines(output)[0]["custom_id"] == "a"
        assert all(process.poll() is None for process in processes)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            assert process.wait(WAIT_S) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kv-memory", "lots"], "kv-memory"),
        (["--stages", "0"], "stages"),
        (["--stages", "99"], "99"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--max-sequence-length", "999999"], "999999"),
        (["--kv-memory", "1KiB"], "1024 bytes do not hold one page"),
        (["--kv-memory", "999TiB"], "lower it"),
        (["--dtype", "int3"], "dtype"),
        pytest.param(
            ["--device", "cuda"],
            "cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA"),
        ),
        (["--frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    model: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [completion("a", [4, 5], max_tokens=4)])
    command = batch_command(source, tmp_path / "out.jsonl", "--model", str(model), *options)
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_role_with_a_bad_configuration_refuses_and_ends_with_2(tmp_path: Path) -> None:
    environment = {**os.environ, "GLINTHAWK_ATTENTION_KV_MEMORY": "plenty"}
    done = subprocess.run(
        [sys.executable, "-m", "glinthawk", "attention"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        env=environment,
    )
    assert done.returncode == 2
    assert "GLINTHAWK_ATTENTION_KV_MEMORY" in done.stderr
    assert "plenty" in done.stderr
