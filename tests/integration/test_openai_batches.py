"""Batches that run, from upload to answers, as the official client sees them."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from unit.gateway.http.serving import Served, serve

WAIT_S = 60.0
MESSAGES: Any = [{"role": "user", "content": "Say hello"}]
BODY = {"model": "tiny", "messages": MESSAGES}
FINAL = ("completed", "failed", "expired", "cancelled")


@dataclass
class Clock:
    """The time by which batches expire. ahead_s: of this machine's."""

    ahead_s: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Running:
    """A gateway that runs batches, and a client of it."""

    client: OpenAI
    served: Served
    clock: Clock

    def begin(self, lines: list[dict[str, Any] | str]) -> Any:
        """Upload lines and create their batch."""
        content = "".join(
            (line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines
        )
        file = self.client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
        return self.client.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="1h",
        )

    def wait_for(self, batch: Any, has_come: Callable[[Any], bool]) -> Any:
        """Return the batch once that is so."""
        deadline = time.monotonic() + WAIT_S
        while not has_come(batch := self.client.batches.retrieve(batch.id)):
            assert time.monotonic() < deadline, f"still {batch}"
            time.sleep(0.02)
        return batch

    def finish(self, batch: Any) -> Any:
        return self.wait_for(batch, lambda one: one.status in FINAL)

    def read(self, file_id: str | None) -> dict[str, Any]:
        """Return the lines of a file by custom_id."""
        assert file_id is not None
        lines = map(json.loads, self.client.files.content(file_id).text.splitlines())
        return {line["custom_id"]: line for line in lines}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    clock = Clock()
    with (
        serve(tmp_path, job_clock=clock) as served,
        OpenAI(api_key="any", base_url=f"{served.url}/v1", max_retries=0) as client,
    ):
        yield Running(client, served, clock)


def build_line(custom_id: str, **body: Any) -> dict[str, Any]:
    url = "/v1/chat/completions"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": BODY | body}


def test_a_batch_runs_and_its_bad_lines_do_not_stop_it(running: Running) -> None:
    lines = [
        *(build_line(f"c{number}", n=2) for number in range(3)),
        build_line("hot", temperature=9),
        build_line("other", model="gpt-4o"),
        "no JSON",
    ]
    done = running.finish(running.begin(lines))
    assert done.status == "completed"
    assert done.errors is None
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (6, 3, 3)
    times = (done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at)
    assert list(times) == sorted(times)
    answers = running.read(done.output_file_id)
    assert set(answers) == {"c0", "c1", "c2"}
    completion = ChatCompletion.model_validate(answers["c1"]["response"]["body"])
    assert [choice.message.content for choice in completion.choices] == ["hello world"] * 2
    errors = running.read(done.error_file_id)
    assert errors["hot"]["response"]["body"]["error"]["param"] == "temperature"
    assert errors["other"]["response"]["status_code"] == 404
    with pytest.raises(openai.NotFoundError) as caught:
        running.client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert errors["other"]["response"]["body"]["error"] == caught.value.body


def test_a_file_without_a_valid_line_fails_and_says_why(running: Running) -> None:
    done = running.finish(running.begin(["no JSON", "{}"]))
    assert (done.status, done.output_file_id) == ("failed", None)
    assert [(one.code, one.line) for one in done.errors.data] == [
        ("invalid_json_line", 1),
        ("invalid_custom_id", 2),
    ]


@pytest.mark.parametrize("ending", ["expired", "cancelled"])
def test_a_batch_that_ends_early_keeps_its_answers(running: Running, ending: str) -> None:
    running.served.tiers.pace_s = 0.01
    batch = running.begin([build_line(f"c{number}") for number in range(400)])
    running.wait_for(batch, lambda one: one.request_counts.completed > 0)
    running.served.tiers.pace_s = 0.5  # so that it does not end by itself
    if ending == "expired":
        running.clock.ahead_s = 3601.0
    else:
        assert running.client.batches.cancel(batch.id).status == "cancelling"
    done = running.finish(batch)
    assert done.status == ending
    assert getattr(done, f"{ending}_at") is not None
    answers, errors = running.read(done.output_file_id), running.read(done.error_file_id)
    assert 0 < len(answers) == done.request_counts.completed < 400
    assert len(answers) + len(errors) == 400
    assert {line["error"]["code"] for line in errors.values()} == {f"batch_{ending}"}
    assert running.client.batches.retrieve(batch.id) == done
    running.client.files.delete(batch.input_file_id)
