"""The batch command at a gateway: upload the input, follow its batch, fetch the answers.

    INPUT --upload--> file --create--> batch --follow--> output and error files --fetch--> OUT

A killed command goes on where it was: beside OUT stands which run this is, and its batch carries
the run's mark, so that it is found even if the command died before it knew the batch's id. OUT
is filled when the batch is over; the sidecar says when it is whole. No model is loaded here.
"""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from glinthawk.config import RemoteBatchConfig
from glinthawk.errors import GlinthawkError, InvalidConfig, NotFound, PeerUnavailable
from glinthawk.gateway.batch_client import BatchClient
from glinthawk.gateway.batch_input import check_paths, find_endpoint, summarize_input
from glinthawk.gateway.batch_output import open_locked
from glinthawk.gateway.interrupts import Interrupted, signals_as_interrupts
from glinthawk.gateway.progress import ProgressReporter, RunNumbers, format_remote
from glinthawk.gateway.remote_lines import normalize_line, split_pieces
from glinthawk.gateway.requests import Endpoint
from glinthawk.gateway.sidecar import (
    RemoteRun,
    RunIdentity,
    Sidecar,
    describe_difference,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

POLL_S = 1.0
FETCH_AGAIN_S = 3.0

_FINAL = ("completed", "failed", "expired", "cancelled")


def run_remote_batch(config: RemoteBatchConfig, *, api_key: str | None) -> int:
    """Have a gateway answer every line of the input, and return the exit code.

    Raises:
        InvalidConfig: the command cannot work as it was given.
        GlinthawkError: the gateway refused, or was away too long; the same command goes on.
    """
    console = Console(stderr=True, soft_wrap=True)
    check_paths(config.input, config.output)
    with BatchClient(
        config.gateway, api_key=api_key, patience_s=config.gateway_timeout_s
    ) as client:
        run = _RemoteRun(config, client, console)
        try:
            with signals_as_interrupts():
                return run.run()
        except Interrupted:
            console.print(run.describe_interruption(), highlight=False)
            return EXIT_INTERRUPTED


class _RemoteRun:
    """One run of the command."""

    def __init__(self, config: RemoteBatchConfig, client: BatchClient, console: Console) -> None:
        self._config = config
        self._client = client
        self._console = console
        self._sidecar: Sidecar | None = None
        self._endpoint: Endpoint | None = None

    def run(self) -> int:
        config = self._config
        summary = summarize_input(config.input)
        descriptor = open_locked(config.output)
        try:
            self._sidecar = self._take_up(descriptor, summary.sha256)
            if self._remote.status is None:
                batch = self._follow(self._find_or_create(), summary.num_lines)
                if batch["status"] == "failed":
                    self._give_up(batch)
                os.ftruncate(descriptor, 0)
                self._fetch(descriptor, batch)
                self._note(replace(self._remote, status=batch["status"]))
        finally:
            os.close(descriptor)
        return self._report()

    def describe_interruption(self) -> str:
        """Say what goes on without this command."""
        if self._sidecar is None or self._remote.batch_id is None:
            return "interrupted: no batch was made; the same command begins again"
        return (
            f"interrupted: batch {self._remote.batch_id} goes on at {self._config.gateway}; the "
            "same command follows it again"
        )

    # --- whose output it is

    @property
    def _remote(self) -> RemoteRun:
        assert self._sidecar is not None
        assert self._sidecar.remote is not None
        return self._sidecar.remote

    def _take_up(self, descriptor: int, input_sha256: str) -> Sidecar:
        """Return the run that this command goes on with, or a new one, which is noted."""
        config, path = self._config, sidecar_path(self._config.output)
        identity = RunIdentity(
            input_sha256,
            "",
            {
                "gateway": config.gateway,
                "completion_window": config.completion_window,
                "priority": config.priority,
            },
        )
        former = None if config.overwrite else read_sidecar(path)
        if former is None:
            if os.fstat(descriptor).st_size > 0 and not config.overwrite:
                self._refuse(f"an unknown run ({path.name} is missing)")
            # An input that no batch can be made of leaves no trace.
            self._endpoint = find_endpoint(config.input)
            os.ftruncate(descriptor, 0)
            fresh = Sidecar(identity, 1, RemoteRun(uuid.uuid4().hex))
            write_sidecar(path, fresh)
            return fresh
        difference = describe_difference(former.identity, identity)
        if difference is not None:
            self._refuse(difference)
        return former

    def _refuse(self, whose: str) -> None:
        raise InvalidConfig(
            f"output {self._config.output} belongs to {whose}; choose another output, or "
            "--overwrite to lose what it holds"
        )

    def _note(self, remote: RemoteRun) -> None:
        assert self._sidecar is not None
        self._sidecar = replace(self._sidecar, remote=remote)
        write_sidecar(sidecar_path(self._config.output), self._sidecar)

    # --- the batch

    def _find_or_create(self) -> str:
        """Return the id of this run's batch."""
        config, remote = self._config, self._remote
        if remote.batch_id is not None:
            self._console.print(f"following batch {remote.batch_id}", highlight=False)
            return remote.batch_id
        batch = self._client.find_batch(remote.mark)
        if batch is None:
            endpoint = self._endpoint or find_endpoint(config.input)
            self._console.print(f"uploading {config.input} to {config.gateway}", highlight=False)
            body = {
                "input_file_id": self._client.upload(config.input),
                "endpoint": str(endpoint),
                "completion_window": config.completion_window,
                "priority": config.priority,
            }
            batch = self._client.create_batch(body, remote.mark)
        batch_id = str(batch["id"])
        self._note(replace(remote, batch_id=batch_id))
        self._console.print(f"batch {batch_id} at {config.gateway}", highlight=False)
        return batch_id

    def _follow(self, batch_id: str, num_lines: int) -> dict[str, Any]:
        """Show the batch until it is over, and return it."""
        num_done_before: int | None = None
        with ProgressReporter(
            self._console, clock=time.monotonic, describe=format_remote
        ) as progress:
            while True:
                batch = self._get_batch(batch_id)
                counts = batch["request_counts"]
                num_done = counts["completed"] + counts["failed"]
                if num_done_before is None:
                    num_done_before = num_done
                progress.update(RunNumbers(num_lines, num_done, counts["failed"], num_done_before))
                if batch["status"] in _FINAL:
                    return batch
                time.sleep(POLL_S)

    def _get_batch(self, batch_id: str) -> dict[str, Any]:
        try:
            return self._client.get_batch(batch_id)
        except NotFound as error:
            raise NotFound(f"{error}; --overwrite begins anew, with another batch") from error

    def _give_up(self, batch: dict[str, Any]) -> None:
        """Forget a batch that the gateway could not begin, so that a mended input can run."""
        path = sidecar_path(self._config.output)
        path.unlink(missing_ok=True)
        errors = (batch["errors"] or {}).get("data", [])
        reasons = "; ".join(str(error["message"]) for error in errors) or "no reason was given"
        raise GlinthawkError(
            f"batch {batch['id']} failed: {reasons}. Mend {self._config.input} and run again"
        )

    # --- the answers

    def _fetch(self, descriptor: int, batch: dict[str, Any]) -> None:
        """Write every answer: those of the output file, then the errors."""
        for file_id in (batch["output_file_id"], batch["error_file_id"]):
            if file_id is not None:
                self._fetch_file(descriptor, file_id)
        try:
            os.fsync(descriptor)
        except OSError as error:
            raise _write_failure(self._config.output, error) from error

    def _fetch_file(self, descriptor: int, file_id: str) -> None:
        begin = os.fstat(descriptor).st_size
        until = time.monotonic() + self._config.gateway_timeout_s
        while True:
            try:
                self._fetch_once(descriptor, file_id, begin)
                return
            except PeerUnavailable:
                if time.monotonic() >= until:
                    raise
                time.sleep(FETCH_AGAIN_S)

    def _fetch_once(self, descriptor: int, file_id: str, begin: int) -> None:
        """Write a file's lines behind `begin`; all of them, or none."""
        is_whole = False
        try:
            with self._client.open_file(file_id) as pieces:
                self._write(descriptor, map(normalize_line, split_pieces(pieces)))
            is_whole = True
        finally:
            # Also on an interrupt: who reads the output must not find half a line.
            if not is_whole:
                os.ftruncate(descriptor, begin)

    def _write(self, descriptor: int, lines: Iterator[bytes]) -> None:
        for line in lines:
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError as error:
                raise _write_failure(self._config.output, error) from error

    def _report(self) -> int:
        """Say what came of it."""
        remote, output = self._remote, self._config.output
        if remote.status == "completed":
            self._console.print(f"batch {remote.batch_id} is completed: {output}", highlight=False)
            return EXIT_OK
        self._console.print(
            f"batch {remote.batch_id} is {remote.status}: lines of {output} that have no answer "
            "say so; --overwrite begins anew",
            highlight=False,
        )
        return EXIT_FAILED


def _write_failure(path: Path, error: OSError) -> GlinthawkError:
    return GlinthawkError(
        f"writing output {path} failed: {error.strerror}. Free space, then run the same command "
        "again; the answers are kept at the gateway"
    )
