import hashlib
import json
import os
from pathlib import Path

import pytest

from glinthawk.errors import GlinthawkError, InvalidConfig
from glinthawk.gateway.batch_input import check_paths, read_input, summarize_input
from glinthawk.gateway.requests import BatchLine, RefusedLine


def line_of(custom_id: str, **fields: object) -> bytes:
    document = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/completions",
        "body": {"prompt": custom_id},
    }
    return json.dumps(document | fields).encode()


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(content)
    return path


def test_lines_keep_their_numbers_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    content = b"\n" + line_of("a") + b"\r\n  \t\n\r\n" + line_of("b")
    path = file_of(tmp_path, content)
    assert [(line.line_number, line.custom_id) for line in read_input(path)] == [(2, "a"), (5, "b")]
    summary = summarize_input(path)
    assert summary.num_lines == 2
    assert summary.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  "])
def test_an_empty_file_has_no_lines(tmp_path: Path, content: bytes) -> None:
    path = file_of(tmp_path, content)
    assert list(read_input(path)) == []
    assert summarize_input(path).num_lines == 0


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (line,) = read_input(file_of(tmp_path, b"\xef\xbb\xbf" + line_of("a")))
    assert isinstance(line, BatchLine)


def test_a_repeated_custom_id_is_refused_and_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"\n".join([line_of("a"), line_of("b"), line_of("a")]))
    first, _, third = read_input(path)
    assert isinstance(first, BatchLine)
    assert isinstance(third, RefusedLine)
    assert third.custom_id is None
    assert third.message.startswith("line 3: custom_id 'a'")


def test_a_refused_line_has_its_custom_id_all_the_same(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"\n".join([line_of("a", method="GET"), line_of("a")]))
    first, second = read_input(path)
    assert isinstance(first, RefusedLine)
    assert first.custom_id == "a"
    assert second.custom_id is None


def test_bad_lines_do_not_hinder_the_others(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"\n".join([b"{", b"\xff", line_of("a")]))
    kinds = [type(line) for line in read_input(path)]
    assert kinds == [RefusedLine, RefusedLine, BatchLine]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_over_the_limit_is_refused_alone(tmp_path: Path, end: bytes) -> None:
    good = line_of("a")
    path = file_of(tmp_path, good + b"\n" + b"x" * (len(good) + 1) + end)
    lines = list(read_input(path, max_line_bytes=len(good)))
    assert isinstance(lines[0], BatchLine)
    assert isinstance(lines[1], RefusedLine)
    assert f"line 2: longer than {len(good)} bytes" in lines[1].message
    assert summarize_input(path, max_line_bytes=len(good)).num_lines == 2


def test_numbers_go_on_after_a_very_long_line(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"x" * (5 << 20) + b"\n" + line_of("a") + b"\n")
    numbers = [(line.line_number, line.custom_id) for line in read_input(path, max_line_bytes=999)]
    assert numbers == [(1, None), (2, "a")]


def test_finished_lines_are_skipped_but_keep_their_custom_id(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"\n".join([line_of("a"), line_of("b"), line_of("a")]))
    second, third = read_input(path, finished={1})
    assert second.custom_id == "b"
    assert isinstance(third, RefusedLine)


def test_paths_that_work_pass(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"")
    check_paths(path, tmp_path / "out.jsonl")
    (tmp_path / "out.jsonl").write_bytes(b"x")
    check_paths(path, tmp_path / "out.jsonl")


def test_paths_that_cannot_work_are_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"")
    link = tmp_path / "link"
    link.symlink_to(path)
    for source, target, words in (
        (tmp_path / "none", tmp_path / "out", "does not exist"),
        (tmp_path, tmp_path / "out", "not a regular file"),
        (Path(os.devnull), tmp_path / "out", "not a regular file"),
        (path, tmp_path / "none" / "out", "does not exist"),
        (path, tmp_path, "not a regular file"),
        (path, path, "is the input"),
        (path, link, "is the input"),
    ):
        with pytest.raises(InvalidConfig, match=words):
            check_paths(source, target)


def test_a_file_that_cannot_be_opened_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        summarize_input(tmp_path / "none")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        next(read_input(tmp_path / "none"))


def test_a_read_that_fails_on_the_way_is_an_error_of_the_run() -> None:
    # Reading one's own memory at address 0 fails with EIO.
    with pytest.raises(GlinthawkError, match="reading input"):
        list(read_input(Path("/proc/self/mem")))
