"""Whole lives of jobs, over the real store, the real engine and the validating process."""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from glinthawk.gateway.http.errors import build_error
from glinthawk.gateway.jobs import results
from glinthawk.gateway.requests import UnknownModel
from glinthawk.gateway.store.records import BatchStatus, RequestCounts
from glinthawk.gateway.store.sql import open_store
from unit.gateway.jobs.factories import (
    Gateway,
    add_batch,
    add_validated_batch,
    await_status,
    await_true,
    build_line,
    make_settings,
    read_answers,
    read_lines,
    read_texts,
)

HALFWAY = 200
"""Tokens of fifty lines, fewer than any job has that something happens to on its way."""


def test_a_job_runs_to_its_end_and_each_line_is_answered_once(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        lines = [build_line(f"id-{n}") for n in range(600)]
        batch = gateway.run(lines, metadata={"k": "v"}, owner="me")
        assert batch.status is BatchStatus.COMPLETED
        assert batch.counts == RequestCounts(600, 600, 0)
        assert batch.error_file_id is None
        answers = read_answers(gateway.store, batch)
        assert set(answers) == {f"id-{n}" for n in range(600)}
        line = answers["id-7"]
        assert line["id"].endswith("_8")
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        assert len(line["response"]["body"]["choices"][0]["text"]) == 4
        times = (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert all(time is not None and time >= batch.created_at for time in times)
        assert list(times) == sorted(times)  # type: ignore[type-var]
        assert gateway.store.next_lines(batch.id, after=0, limit=1) == []
        output = gateway.store.get_file(str(batch.output_file_id))
        assert output.owner == "me"
        gateway.scheduler.check_integrity()
        assert (
            gateway.registry.get_sample_value("glinthawk_job_lines_total", {"outcome": "completed"})
            == 600.0
        )


def test_bad_lines_go_to_the_error_file_and_the_rest_runs(tmp_path: Path) -> None:
    lines = [
        build_line("good"),
        b"{",
        build_line("good"),
        build_line("chat", url="/v1/chat/completions"),
        build_line("body", body={"prompt": "x", "top_p": 2}),
        build_line("model", body={"prompt": "x", "model": "other"}),
        build_line("mine", body={"prompt": "x", "model": "mine", "max_tokens": 3}),
    ]
    settings = make_settings(model_names=("mine", "ours"))
    with Gateway(tmp_path, settings=settings) as gateway:
        batch = gateway.run(lines)
        assert batch.status is BatchStatus.COMPLETED
        assert batch.counts == RequestCounts(7, 2, 5)
        assert set(read_texts(gateway.store, batch)) == {"good", "mine"}
        errors = read_lines(gateway.store, batch.error_file_id)
        found = {
            line["custom_id"]: (
                line["response"]["status_code"],
                line["response"]["body"]["error"]["param"],
            )
            for line in errors
            if line["custom_id"] is not None
        }
        assert found == {"chat": (400, "url"), "body": (400, "top_p"), "model": (404, "model")}
        assert sum(line["custom_id"] is None for line in errors) == 2
        (error,) = [one for one in errors if one["custom_id"] == "model"]
        message = "the model 'other' does not exist; there is 'mine', 'ours'"
        _, expected = build_error(UnknownModel(message))
        assert error["response"]["body"] == expected, "the same as over HTTP"


@pytest.mark.parametrize(
    ("lines", "code", "line"),
    [
        ([], "empty_file", None),
        ([b"\x89PNG\r\n\x1a\n\x00", b"\xff\xd8"], "invalid_json_line", 1),
        ([b"", build_line("a", method="GET")], "invalid_method", 2),
    ],
)
def test_a_file_without_a_valid_line_fails_and_says_why(
    tmp_path: Path, lines: list[bytes], code: str, line: int | None
) -> None:
    with Gateway(tmp_path) as gateway:
        batch = gateway.run(lines)
        assert batch.status is BatchStatus.FAILED
        assert batch.failed_at is not None
        assert batch.errors[0].code == code
        assert batch.errors[0].line == line
        assert batch.output_file_id is None
        assert batch.error_file_id is None


def test_an_answer_that_is_larger_than_what_is_kept_is_an_error_of_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "MAX_ANSWER_BYTES", 500)
    long = build_line("long", body={"prompt": "x", "max_tokens": 150})
    with Gateway(tmp_path) as gateway:
        batch = gateway.run([build_line("short"), long])
        answers = read_answers(gateway.store, batch)
    assert (batch.counts.completed, batch.counts.failed) == (1, 1)
    assert answers["short"]["response"]["status_code"] == 200
    assert "500 are kept at most" in json.dumps(answers["long"])


def test_a_job_whose_time_is_over_keeps_what_it_has(tmp_path: Path) -> None:
    settings = make_settings(read_ahead=8)
    with Gateway(tmp_path, step_s=0.01, settings=settings) as gateway:
        lines = [build_line(f"id-{n}") for n in range(3000)]
        batch = gateway.submit(lines)
        await_true(lambda: gateway.store.get_batch(batch.id).counts.completed > 0)
        gateway.days = 2
        batch = await_status(gateway.store, batch.id)
        assert batch.status is BatchStatus.EXPIRED
        assert batch.expired_at is not None
        counts = batch.counts
        assert 0 < counts.completed < 3000
        assert counts.completed + counts.failed == counts.total == 3000
        assert len(read_answers(gateway.store, batch)) == 3000
        errors = read_lines(gateway.store, batch.error_file_id)
        assert {line["error"]["code"] for line in errors} == {"batch_expired"}
        assert all(line["response"] is None for line in errors)
        await_true(lambda: not gateway.scheduler.has_work())


def test_a_cancelled_job_keeps_what_it_has_and_frees_the_engine(tmp_path: Path) -> None:
    settings = make_settings(read_ahead=64)
    with Gateway(tmp_path, step_s=0.002, settings=settings) as gateway:
        gateway.tiers.pause_after = HALFWAY
        batch = gateway.submit([build_line(f"id-{n}") for n in range(3000)])
        await_true(lambda: gateway.store.get_batch(batch.id).counts.completed > 0)
        assert gateway.cancel(batch.id).status is BatchStatus.CANCELLING
        batch = await_status(gateway.store, batch.id)
        gateway.tiers.resume()
        assert batch.status is BatchStatus.CANCELLED
        assert None not in (batch.cancelling_at, batch.finalizing_at, batch.cancelled_at)
        assert len(read_answers(gateway.store, batch)) == 3000
        errors = read_lines(gateway.store, batch.error_file_id)
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
        assert len(errors) == batch.counts.failed == 3000 - batch.counts.completed
        await_true(lambda: not gateway.scheduler.has_work())
        gateway.scheduler.check_integrity()
        assert gateway.cancel(batch.id) == batch


def test_a_job_cancelled_while_it_is_validated_answers_all_its_lines(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        batch = gateway.submit([build_line(f"id-{n % 19_000}") for n in range(20_000)])
        await_true(lambda: bool(gateway.store.next_lines(batch.id, after=0, limit=1)))
        assert gateway.cancel(batch.id).status is BatchStatus.CANCELLING
        batch = await_status(gateway.store, batch.id)
        assert batch.status is BatchStatus.CANCELLED
        assert batch.counts == RequestCounts(20_000, 0, 20_000)
        assert batch.output_file_id is None
        assert len(read_lines(gateway.store, batch.error_file_id)) == 20_000


def test_a_small_job_does_not_wait_behind_a_large_one(tmp_path: Path) -> None:
    settings = make_settings(read_ahead=64)
    with Gateway(tmp_path, step_s=0.002, settings=settings) as gateway:
        large = gateway.submit([build_line(f"large-{n}") for n in range(20_000)])
        await_true(lambda: gateway.store.get_batch(large.id).counts.completed > 0)
        small = gateway.run([build_line(f"small-{n}") for n in range(50)])
        assert small.status is BatchStatus.COMPLETED
        assert gateway.store.get_batch(large.id).status is BatchStatus.IN_PROGRESS


def test_what_is_ahead_of_the_store_is_bounded(tmp_path: Path) -> None:
    with Gateway(tmp_path, settings=make_settings(read_ahead=10)) as gateway:
        gateway.tiers.go.clear()
        batch = gateway.submit([build_line(f"id-{n}") for n in range(500)])
        await_status(gateway.store, batch.id, {BatchStatus.IN_PROGRESS})
        await_true(lambda: gateway.scheduler.stats().num_prefilling > 0)
        time.sleep(0.3)
        stats = gateway.scheduler.stats()
        assert stats.num_waiting + stats.num_prefilling + stats.num_decoding <= 10
        gateway.tiers.go.set()
        assert await_status(gateway.store, batch.id).counts.completed == 500


def test_a_locked_store_loses_nothing_and_work_goes_on_when_it_is_free(tmp_path: Path) -> None:
    with (
        capture_logs() as logs,
        Gateway(tmp_path, step_s=0.002, settings=make_settings(read_ahead=32)) as gateway,
    ):
        gateway.tiers.pause_after = HALFWAY
        batch = gateway.submit([build_line(f"id-{n}") for n in range(400)])
        await_true(lambda: gateway.store.get_batch(batch.id).counts.completed > 0)
        other = sqlite3.connect(tmp_path / "glinthawk.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        gateway.tiers.resume()
        await_true(lambda: any(line["event"] == "store_unavailable" for line in logs))
        held = gateway.store.get_batch(batch.id).counts
        time.sleep(0.5)
        assert gateway.store.get_batch(batch.id).counts == held
        assert gateway.tiers.num_sampled <= (held.completed + 32 + 32) * 4
        other.execute("ROLLBACK")
        other.close()
        batch = await_status(gateway.store, batch.id)
        assert batch.counts == RequestCounts(400, 400, 0)
        assert len(read_answers(gateway.store, batch)) == 400
    events = [line["event"] for line in logs if line.get("doing") == "committing answers"]
    assert events == ["store_unavailable", "store_available_again"]


def test_a_job_that_expires_while_the_store_is_locked_is_expired_not_completed(
    tmp_path: Path,
) -> None:
    settings = make_settings(read_ahead=8)
    with capture_logs() as logs, Gateway(tmp_path, step_s=0.002, settings=settings) as gateway:
        gateway.tiers.pause_after = HALFWAY
        batch = gateway.submit([build_line(f"id-{n}") for n in range(2000)])
        await_true(lambda: gateway.store.get_batch(batch.id).counts.completed > 0)
        other = sqlite3.connect(tmp_path / "glinthawk.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        gateway.days = 2
        gateway.tiers.resume()
        await_true(lambda: any(line["event"] == "store_unavailable" for line in logs))
        time.sleep(0.5)
        other.execute("ROLLBACK")
        other.close()
        batch = await_status(gateway.store, batch.id)
        assert batch.status is BatchStatus.EXPIRED
        assert 0 < batch.counts.completed < 2000
        assert len(read_answers(gateway.store, batch)) == 2000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("this process may not mount a tmpfs, so no disk can be filled")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_loses_nothing_and_work_goes_on_when_there_is_room(small_disk: Path) -> None:
    settings = make_settings(read_ahead=32)
    filler = small_disk / "filler"
    with capture_logs() as logs, Gateway(small_disk, step_s=0.002, settings=settings) as gateway:
        gateway.tiers.pause_after = HALFWAY
        batch = gateway.submit([build_line(f"id-{n}") for n in range(400)])
        await_true(lambda: gateway.store.get_batch(batch.id).counts.completed > 0)
        fill(filler)
        gateway.tiers.resume()
        await_true(lambda: any(line["event"] == "store_unavailable" for line in logs))
        assert gateway.store.get_batch(batch.id).counts.completed < 400
        filler.unlink()
        batch = await_status(gateway.store, batch.id)
        assert batch.counts == RequestCounts(400, 400, 0)
        assert len(read_answers(gateway.store, batch)) == 400


def test_lines_wait_for_an_engine_that_is_not_there_yet(tmp_path: Path) -> None:
    with capture_logs() as logs, Gateway(tmp_path, is_attached=False) as gateway:
        batch = gateway.submit([build_line(f"id-{n}") for n in range(20)])
        await_true(lambda: any(line["event"] == "generation_unavailable" for line in logs))
        gateway.generation.attach(gateway.engine)
        batch = await_status(gateway.store, batch.id)
        assert batch.counts == RequestCounts(20, 20, 0)
    events = [line["event"] for line in logs if line["event"].startswith("generation")]
    assert events == ["generation_unavailable", "generation_available_again"]


def test_an_input_that_cannot_be_read_holds_up_only_its_job(tmp_path: Path) -> None:
    with (
        capture_logs() as logs,
        Gateway(tmp_path, step_s=0.005, settings=make_settings(read_ahead=8)) as gateway,
    ):
        gateway.tiers.pause_after = HALFWAY
        batch = gateway.submit([build_line(f"id-{n}") for n in range(100)])
        await_true(lambda: gateway.store.get_batch(batch.id).counts.completed > 0)
        path = gateway.store.file_path(batch.input_file_id)
        path.rename(tmp_path / "away")
        gateway.tiers.resume()
        await_true(lambda: any(line["event"] == "input_unreadable" for line in logs))
        other = gateway.run([build_line(f"other-{n}") for n in range(50)])
        assert other.counts == RequestCounts(50, 50, 0)
        assert gateway.store.get_batch(batch.id).status is BatchStatus.IN_PROGRESS
        (tmp_path / "away").rename(path)
        batch = await_status(gateway.store, batch.id)
        assert batch.counts == RequestCounts(100, 100, 0)
    assert sum(line["event"] == "input_unreadable" for line in logs) == 1


def test_lines_that_are_not_those_that_were_validated_are_an_error_of_ours(tmp_path: Path) -> None:
    with Gateway(tmp_path) as gateway:
        batch = add_validated_batch(gateway.store, 3)
        gateway.runner.batch_created(batch.id)
        batch = await_status(gateway.store, batch.id)
        assert batch.counts == RequestCounts(3, 0, 3)
        errors = read_lines(gateway.store, batch.error_file_id)
        assert [line["response"]["status_code"] for line in errors] == [500] * 3


@pytest.mark.parametrize("priority", [1, -1])
def test_jobs_share_the_engine_by_their_priorities(tmp_path: Path, priority: int) -> None:
    settings = make_settings(read_ahead=32)
    with Gateway(tmp_path, step_s=0.005, settings=settings) as gateway:
        gateway.tiers.go.clear()
        plain = gateway.submit([build_line(f"plain-{n}") for n in range(1000)])
        other = gateway.submit([build_line(f"other-{n}") for n in range(1000)], priority=priority)
        for batch in (plain, other):
            await_status(gateway.store, batch.id, {BatchStatus.IN_PROGRESS})

        def count_up_to(num_texts: int) -> dict[str, int]:
            """Return the answers of each when all of both, but what is open, are durable."""
            gateway.tiers.pause_after = 4 * num_texts
            gateway.tiers.go.set()

            def count() -> dict[str, int]:
                batches = [gateway.store.get_batch(batch.id) for batch in (plain, other)]
                return {batch.id: batch.counts.completed for batch in batches}

            await_true(lambda: sum(count().values()) >= num_texts - settings.read_ahead)
            return count()

        first, last = count_up_to(100), count_up_to(900)
        done = {batch_id: last[batch_id] - first[batch_id] for batch_id in first}
        assert done[other.id] / done[plain.id] == pytest.approx(2.0**priority, rel=0.2)


def test_a_restarted_gateway_goes_on_by_itself_to_the_same_texts(tmp_path: Path) -> None:
    lines = [build_line(f"id-{n}") for n in range(200)]
    with Gateway(tmp_path / "undisturbed") as gateway:
        expected = read_texts(gateway.store, gateway.run(lines))
    with Gateway(tmp_path / "data", step_s=0.005, settings=make_settings(read_ahead=16)) as first:
        first.tiers.pause_after = HALFWAY
        batch = first.submit(lines)
        await_true(lambda: first.store.get_batch(batch.id).counts.completed > 0)
    store = open_store(tmp_path / "data")
    assert 0 < store.get_batch(batch.id).counts.completed < 200
    with Gateway(tmp_path / "data", store=store) as second:
        batch = await_status(second.store, batch.id)
        assert batch.counts == RequestCounts(200, 200, 0)
        assert read_texts(second.store, batch) == expected
        assert len(set(expected.values())) > 150, "texts differ by their seeds"


@pytest.mark.parametrize("status", [BatchStatus.VALIDATING, BatchStatus.CANCELLING])
def test_a_batch_that_nobody_submitted_is_found_at_the_start(
    tmp_path: Path, status: BatchStatus
) -> None:
    with Gateway(tmp_path) as gateway:
        gateway.runner.stop()
        batch = add_batch(gateway.store, [build_line("a")], status=status)
    with Gateway(tmp_path) as gateway:
        ended = await_status(gateway.store, batch.id).status
        cancelled = status is BatchStatus.CANCELLING
        assert ended is (BatchStatus.CANCELLED if cancelled else BatchStatus.COMPLETED)


def test_progress_and_metrics_follow_a_job(tmp_path: Path) -> None:
    with Gateway(tmp_path, step_s=0.002, settings=make_settings(read_ahead=32)) as gateway:
        gateway.tiers.pause_after = 4000
        batch = gateway.submit([*(build_line(f"id-{n}") for n in range(2000)), b"{"])

        def is_shown() -> bool:
            return any(
                item.num_done > 1 and item.eta_s is not None and item.tokens_per_s > 0
                for item in gateway.runner.progress()
            )

        await_true(is_shown)
        (item,) = gateway.runner.progress()
        assert item.batch_id == batch.id
        assert item.status is BatchStatus.IN_PROGRESS
        assert item.num_lines == 2001
        assert 1 < item.num_done < 2001
        assert item.num_failed == 1
        value = gateway.registry.get_sample_value("glinthawk_jobs", {"status": "in_progress"})
        assert value == 1.0
        gateway.cancel(batch.id)
        await_status(gateway.store, batch.id)
        await_true(lambda: gateway.runner.progress() == ())
