"""Many streams and a batch at once: no error, and afterwards as little memory held as before.

The first wave fills what a process keeps for good (buffers, caches, pools); what the later waves
add is a leak.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from factories_models import make_tiny_model
from glinthawk.bench.client import StreamFigures
from glinthawk.bench.fleet import wait_until
from glinthawk.config import count_cores
from killed_runs import START_S, Up, create_batch, make_lines, read_batch, up

PATH = "/v1/completions"
NUM_WAVES = 3
SLACK_BYTES = 24 << 20
"""What the resident memory of one process may grow by from the first wave to the last."""

AS_USERS_RUN_IT = ("--kv-memory", "1GiB", "--dtype", "auto", "--threads", f"stage={count_cores()}")
"""No texts are compared here, so nothing need be exact: in float32 on one thread, as `up` of the
tests runs, the waves would take several times as long."""


def build_streams(model: str, num_streams: int, num_tokens: int) -> list[dict[str, Any]]:
    shared = {"model": model, "max_tokens": num_tokens, "temperature": 0, "ignore_eos": True}
    return [
        {**shared, "prompt": [5 + (11 * index + place) % 290 for place in range(4 + index % 40)]}
        for index in range(num_streams)
    ]


def send_wave(
    command: Up, streams: list[dict[str, Any]], lines: list[dict[str, Any]], label: str
) -> None:
    """Have a batch and all streams under way at once, and check every answer."""
    batch_id = create_batch(command.patient, lines, label)
    with ThreadPoolExecutor(len(streams)) as pool:
        stream = command.patient.client.stream
        done: list[StreamFigures] = list(pool.map(stream, itertools.repeat(PATH), streams))
    assert [one.tokens for one in done] == [body["max_tokens"] for body in streams]
    results = read_batch(command.patient, batch_id)
    assert {line["custom_id"] for line in results} == {line["custom_id"] for line in lines}
    assert len(results) == len(lines)
    assert all(line["error"] is None for line in results)
    assert all(line["response"]["status_code"] == 200 for line in results)


def wait_until_empty(command: Up) -> None:
    def is_empty() -> bool:
        seen = command.control.inspect()
        return seen["kv"]["used_bytes"] == 0 and seen["num_waiting"] == 0

    wait_until(is_empty, "KV at 0 and nobody waiting", START_S)


def measure(command: Up) -> dict[str, int]:
    """Return the resident bytes of each process, by what it is."""
    found = {}
    for process in command.processes:
        arguments = process.cmdline()
        name = arguments[arguments.index("--name") + 1] if "--name" in arguments else "up"
        found[name] = process.memory_info().rss
    return found


@pytest.mark.parametrize(
    ("num_streams", "num_lines", "model", "options"),
    [
        (20, 100, None, ("--kv-memory", "64MiB")),
        pytest.param(
            *(100, 2000, "smollm2-135m", AS_USERS_RUN_IT),
            marks=[pytest.mark.acceptance, pytest.mark.timeout(3600)],
        ),
    ],
)
def test_streams_and_a_batch_at_once_leave_nothing_behind(
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    num_streams: int,
    num_lines: int,
    model: str | None,
    options: tuple[str, ...],
) -> None:
    name = model or str(make_tiny_model("llama3", tmp_path / "model"))
    streams = build_streams(name, num_streams, num_tokens=32)
    lines = make_lines(Path(name), num_lines, num_tokens=24)
    with up(Path(name), tmp_path / "up", *options) as command:
        command.start()
        command.wait_until_ready()
        sizes = []
        for number in range(NUM_WAVES):
            send_wave(command, streams, lines, f"wave-{number}")
            wait_until_empty(command)
            sizes.append(measure(command))
            record_property(f"resident bytes after wave {number}", sizes[-1])
        assert sizes[0].keys() == sizes[-1].keys() == {"up", "stage-0", "attention-0"}
        grown = {name: sizes[-1][name] - sizes[0][name] for name in sizes[0]}
        assert max(grown.values()) <= SLACK_BYTES, f"{sizes}"
        assert command.stop()
        command.wait_until_nothing_is_left()
