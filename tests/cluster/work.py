"""Batches on a running cluster, and what came of them: lost, doubled, failed or changed lines.

`glinthawk batch` says what each line's text is; the cluster has to say the same.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai

from batch_runs import run_batch
from cluster.api import Api
from cluster.live import MODEL, MODEL_FOLDER, Deployment
from glinthawk.bench.chaos import ChaosBenchSettings, build_lines
from glinthawk.bench.tally import Answer, Tally, compare, read_answers

ENDPOINT = "/v1/completions"
FINAL = ("completed", "failed", "expired", "cancelled")
BATCH_S = 600.0
POLL_S = 1.0

Lines = Sequence[Mapping[str, Any]]


def make_lines(num_requests: int, num_tokens: int) -> list[dict[str, Any]]:
    """Return greedy requests of many lengths."""
    settings = ChaosBenchSettings(requests=num_requests, tokens=num_tokens, model=MODEL)
    return build_lines(settings)


def answer_here(folder: Path, lines: list[dict[str, Any]]) -> dict[str, Answer]:
    """Return what the batch command answers on this machine, by custom_id."""
    options = ("--model", str(MODEL_FOLDER), "--dtype", "float32", "--device", "cpu")
    done = run_batch(folder, lines, *options, name="here")
    assert done.exit_code == 0, done.stderr
    answers = read_answers(done.lines)
    assert len(answers) == len(lines)
    return answers


def begin_batch(api: Api, lines: Lines, label: str) -> str:
    """Upload lines and make exactly one batch of them, whatever answers are lost; return its id."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    source = api.ask(
        lambda client: client.files.create(file=(f"{label}.jsonl", content), purpose="batch")
    )

    def begin(client: openai.OpenAI) -> str:
        for known in client.batches.list(limit=100):
            if (known.metadata or {}).get("label") == label:
                return known.id
        made = client.batches.create(
            input_file_id=source.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"label": label},
        )
        return made.id

    return api.ask(begin)


def read_batch(api: Api, batch_id: str) -> Any:
    """Return a batch as it stands."""
    return api.ask(lambda client: client.batches.retrieve(batch_id))


def finish_batch(api: Api, batch_id: str, timeout_s: float = BATCH_S) -> list[dict[str, Any]]:
    """Wait for the end of a batch, and return the lines of its output and its errors."""
    deadline = time.monotonic() + timeout_s
    while (batch := read_batch(api, batch_id)).status not in FINAL:
        assert time.monotonic() < deadline, f"not over within {timeout_s:g} s: {batch}"
        time.sleep(POLL_S)
    assert batch.status == "completed", batch
    ids = [one for one in (batch.output_file_id, batch.error_file_id) if one]
    texts = [api.ask(lambda client, one=one: client.files.content(one).text) for one in ids]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def judge(results: Lines, lines: Lines, here: Mapping[str, Answer]) -> Tally:
    """Count what went wrong with a batch; `Tally()` is nothing."""
    return compare(results, [line["custom_id"] for line in lines], here)


@dataclass
class Rounds:
    """What came of a batch that was given again and again. took_s: of each round."""

    tally: Tally = field(default_factory=Tally)
    took_s: list[float] = field(default_factory=list)


@contextmanager
def work_goes_on(
    deployment: Deployment, lines: Lines, here: Mapping[str, Answer], label: str
) -> Iterator[Rounds]:
    """Give a batch again and again while the body runs, and see the last one to its end."""
    rounds, is_over = Rounds(), threading.Event()

    def work() -> None:
        api = Api(deployment)
        try:
            while not (rounds.took_s and is_over.is_set()):
                began = time.monotonic()
                batch_id = begin_batch(api, lines, f"{label}-{len(rounds.took_s)}")
                rounds.tally += judge(finish_batch(api, batch_id), lines, here)
                rounds.took_s.append(time.monotonic() - began)
        finally:
            api.close()

    with ThreadPoolExecutor(1, thread_name_prefix="work") as pool:
        done = pool.submit(work)
        try:
            yield rounds
        finally:
            is_over.set()
    done.result()
