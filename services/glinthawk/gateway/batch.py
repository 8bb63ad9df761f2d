"""The batch command: a batch file in, an output file out, over tiers that it starts or is given.

    input file --parse--> engine --completions--> output file
                            |
                        cluster <--- local processes (launcher), or others (--listen)

The main thread reads, tokenizes and writes; the engine has a thread of its own. So much is
read ahead as keeps the lanes full, never the whole file.
"""

import json
import queue
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import NoReturn

from prometheus_client import CollectorRegistry
from rich.console import Console

from glinthawk import __version__
from glinthawk.config import BatchConfig
from glinthawk.errors import GlinthawkError, InvalidRequest
from glinthawk.gateway.answers import Answers
from glinthawk.gateway.batch_input import check_paths, read_input, summarize_input
from glinthawk.gateway.batch_output import OutputFile
from glinthawk.gateway.engine import Completion, Engine
from glinthawk.gateway.interrupts import Interrupted, signals_as_interrupts
from glinthawk.gateway.launcher import Launcher
from glinthawk.gateway.progress import (
    ProgressReporter,
    RunSummary,
    build_summary_table,
)
from glinthawk.gateway.requests import BatchLine, ModelContext, RefusedLine, parse_request
from glinthawk.gateway.sidecar import RunIdentity
from glinthawk.gateway.tier_settings import (
    build_tiers_settings,
    check_sizes,
    longest_sequence,
)
from glinthawk.gateway.tiers import Tiers
from glinthawk.models.config import ModelConfig
from glinthawk.models.hf_tokenizer import load_tokenizer
from glinthawk.models.load import load_config
from glinthawk.models.source import ModelFiles, model_digest, resolve_model, tokenizer_digest
from glinthawk.models.tokenizer import Tokenizer
from glinthawk.telemetry.defects import ThreadDefects
from glinthawk.telemetry.logging import get_logger
from glinthawk.telemetry.metrics import ServiceMetrics, serve_metrics
from glinthawk.wire.control import Description, attach_control
from glinthawk.wire.grpc_server import GrpcServer

log = get_logger("gateway.batch")

READ_AHEAD_SEQUENCES = 1024
"""Sequences that are admitted or wait at once: enough to fill the lanes, few enough to hold."""

CHILD_END_S = 1.0
"""How long a process of ours, whose connection broke, is given to end before it is judged."""

EXIT_OK = 0
EXIT_INTERRUPTED = 130


def run_batch(config: BatchConfig) -> int:
    """Answer every line of the input and return the exit code.

    Raises:
        InvalidConfig: the command cannot work as it was given.
        GlinthawkError: the run failed; finished lines are kept.
    """
    try:
        with signals_as_interrupts(), ThreadDefects() as defects:
            return _BatchRun(config, defects).run()
    except Interrupted:
        Console(stderr=True).print("interrupted: the same command goes on from here")
        return EXIT_INTERRUPTED


class _BatchRun:
    """One run of the command."""

    def __init__(self, config: BatchConfig, defects: ThreadDefects) -> None:
        check_paths(config.input, config.output)
        self._defects = defects
        self._config = config
        self._console = Console(stderr=True)
        self._started_at = time.monotonic()
        self._files: ModelFiles = resolve_model(config.model, revision=config.revision)
        self._model: ModelConfig = load_config(self._files)
        check_sizes(config, self._model)
        self._digest = model_digest(self._files)
        self._tokenizer: Tokenizer = load_tokenizer(self._files)
        self._completions: queue.SimpleQueue[Completion] = queue.SimpleQueue()
        self._registry = CollectorRegistry()
        self._metrics = ServiceMetrics(self._registry)
        self._num_open = 0
        self._engine: Engine | None = None
        self._launcher: Launcher | None = None
        self._load_s = 0.0
        self._run_s = 0.0

    def run(self) -> int:
        config = self._config
        summary = summarize_input(config.input)
        with OutputFile(
            config.output,
            self._identity(summary.sha256),
            overwrite=config.overwrite,
            clock=time.monotonic,
        ) as output:
            self._output = output
            self._answers = Answers(output, self._tokenizer, summary.num_lines)
            if self._answers.numbers.num_done < summary.num_lines:
                with ExitStack() as stack:
                    self._start(stack)
                    self._answer_all()
        self._report()
        return EXIT_OK

    # --- start

    def _start(self, stack: ExitStack) -> None:
        """Bring the tiers up; `stack` takes them down again."""
        config = self._config
        host, port = config.listen_address or ("127.0.0.1", 0)
        server = GrpcServer(host, port, secret=config.secret)
        tiers = Tiers(
            build_tiers_settings(config, self._model, self._digest),
            server,
            self._tokenizer,
            reserve_epochs=self._output.reserve_epochs,
            on_done=self._completions.put,
            metrics=self._metrics,
        )
        attach_control(server, self._describe)
        server.start()
        stack.callback(server.stop, 0.2)
        serve_metrics(self._registry, host, config.metrics_port)
        tiers.start()
        if config.listen_address is None:
            self._launcher = Launcher(config, gateway_address=server.address)
            stack.callback(self._launcher.stop)
            self._launcher.start()
        else:
            self._console.print(f"waiting for stages and workers at {server.address}")
        stack.callback(tiers.stop, "the batch is done")
        self._engine = tiers.start_engine(config.start_timeout_s, self._check_children)
        server.set_serving(True)
        self._load_s = time.monotonic() - self._started_at

    def _describe(self) -> Description:
        return Description("gateway", "batch", __version__, stats=asdict(self._answers.numbers))

    def _identity(self, input_sha256: str) -> RunIdentity:
        config = self._config
        return RunIdentity(
            input_sha256,
            self._digest,
            {
                "tokenizer": tokenizer_digest(self._files),
                "dtype": config.dtype,
                "kv_dtype": config.kv_dtype,
                "max_sequence_length": config.max_sequence_length,
                "seed": config.seed,
            },
        )

    # --- work

    def _answer_all(self) -> None:
        context = ModelContext(
            self._tokenizer,
            longest_sequence(self._config, self._model),
            frozenset(self._model.eos_token_ids),
            vocab_size=self._model.vocab_size,
        )
        finished = self._output.finished.line_numbers
        started_at = time.monotonic()
        self._progress = ProgressReporter(self._console, clock=time.monotonic)
        with self._progress:
            for line in read_input(self._config.input, finished=finished):
                self._admit(line, context)
                while self._num_open >= READ_AHEAD_SEQUENCES:
                    self._collect()
            while self._num_open > 0:
                self._collect()
            self._run_s = time.monotonic() - started_at
            self._answers.settle()

    def _admit(self, line: BatchLine | RefusedLine, context: ModelContext) -> None:
        """Hand a line to the engine, or answer it at once if it cannot run."""
        if isinstance(line, RefusedLine):
            self._answers.refuse(line)
            return
        try:
            request = parse_request(line, context, run_seed=self._config.seed)
        except InvalidRequest as error:
            self._answers.reject(line, error)
            return
        assert self._engine is not None
        self._num_open += len(request.choices)
        self._engine.submit((line.line_number, line.custom_id), request)

    def _collect(self) -> None:
        """Wait a moment for finished requests and write them down."""
        assert self._engine is not None
        completions = list(self._take_completions())
        self._num_open -= sum(len(completion.request.choices) for completion in completions)
        self._answers.add(completions)
        if self._engine.failure is not None:
            self._explain(self._engine.failure)
        self._check_children()
        self._answers.show(self._engine.stats)
        self._progress.update(self._answers.numbers)

    def _take_completions(self) -> Iterator[Completion]:
        try:
            yield self._completions.get(timeout=0.2)
            while True:
                yield self._completions.get_nowait()
        except queue.Empty:
            return

    def _explain(self, failure: GlinthawkError) -> NoReturn:
        """Raise why the run failed: a process of ours that ended tells more than its peers."""
        deadline = time.monotonic() + CHILD_END_S
        while self._launcher is not None and time.monotonic() < deadline:
            self._launcher.check()
            time.sleep(0.05)
        raise failure

    def _check_children(self) -> None:
        self._defects.check()
        if self._launcher is not None:
            self._launcher.check()

    def _report(self) -> None:
        run_s = self._run_s
        summary = RunSummary(self._answers.numbers, load_s=self._load_s, run_s=run_s)
        self._console.print(build_summary_table(summary))
        if self._config.summary is not None:
            figures = {**asdict(self._answers.numbers), "load_s": self._load_s, "run_s": run_s}
            self._config.summary.write_text(json.dumps(figures, indent=2) + "\n")
