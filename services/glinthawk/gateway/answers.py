"""What a batch run answers: output lines, and the counts that its user sees."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from http import HTTPStatus

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.batch_output import OutputFile
from glinthawk.gateway.bodies import (
    build_body,
    build_error_body,
    build_line_ids,
    build_output_line,
    build_refused_line,
)
from glinthawk.gateway.engine import Completion, EngineStats
from glinthawk.gateway.progress import RunNumbers
from glinthawk.gateway.requests import BatchLine, RefusedLine
from glinthawk.models.tokenizer import Tokenizer


class Answers:
    """Writes each answer to the output once, and counts it. One thread uses it.

    now: seconds since 1970, for the time of creation in a body.
    """

    def __init__(
        self,
        output: OutputFile,
        tokenizer: Tokenizer,
        num_lines: int,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._output = output
        self._tokenizer = tokenizer
        self._now = now
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        finished = output.finished
        self.numbers = RunNumbers(
            num_lines=num_lines,
            num_done=len(finished.line_numbers),
            num_failed=finished.num_failed,
            num_done_before=len(finished.line_numbers),
        )

    def refuse(self, line: RefusedLine) -> None:
        """Answer a line that is no request."""
        ids = build_line_ids(self._output.run_digest, line.line_number)
        self._write([build_refused_line(ids, line)], num_failed=1)

    def reject(self, line: BatchLine, error: GlinthawkError) -> None:
        """Answer a request that cannot run."""
        self._write([self._build_error(line.line_number, line.custom_id, error)], num_failed=1)

    def add(self, completions: Sequence[Completion]) -> None:
        """Answer requests that ended."""
        if completions:
            num_failed = sum(completion.error is not None for completion in completions)
            self._write([self._build(item) for item in completions], num_failed=num_failed)

    def show(self, stats: EngineStats) -> None:
        """Take over the engine's figures; they lag behind by a moment."""
        self.numbers = replace(
            self.numbers,
            num_prompt_tokens=stats.tokens_in,
            num_generated_tokens=stats.tokens_out,
            kv_used_bytes=stats.scheduler.kv_used_bytes,
            kv_capacity_bytes=stats.scheduler.kv_capacity_bytes,
        )

    def settle(self) -> None:
        """Put the tokens that stand in the output in place of the engine's figures."""
        self.numbers = replace(
            self.numbers,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generated_tokens=self._num_generated_tokens,
        )

    def _build(self, completion: Completion) -> bytes:
        assert isinstance(completion.key, tuple), "keys are line number and custom_id"
        line_number, custom_id = completion.key
        if completion.error is not None:
            return self._build_error(line_number, custom_id, completion.error)
        self._num_prompt_tokens += completion.request.num_prompt_tokens
        self._num_generated_tokens += sum(len(choice.tokens) for choice in completion.choices)
        ids = build_line_ids(self._output.run_digest, line_number)
        body = build_body(
            completion.request,
            completion.choices,
            self._tokenizer,
            body_id=ids.body,
            created=int(self._now()),
        )
        return build_output_line(ids, custom_id, HTTPStatus.OK, body)

    def _build_error(self, line_number: int, custom_id: str, error: GlinthawkError) -> bytes:
        ids = build_line_ids(self._output.run_digest, line_number)
        return build_output_line(ids, custom_id, *build_error_body(error))

    def _write(self, lines: list[bytes], *, num_failed: int) -> None:
        self._output.append(lines)
        self.numbers = replace(
            self.numbers,
            num_done=self.numbers.num_done + len(lines),
            num_failed=self.numbers.num_failed + num_failed,
        )
