"""The command line: `glinthawk batch | up | gateway | stage | attention`, and what cli_bench.py,
cli_fetch.py and cli_operate.py add: `bench`, `fetch`, `keys | status | drain | version`.

Options are made from the fields of the configuration, so that a name means the same everywhere.
Rooms are imported when a command runs: an attention worker never loads torch, and `--help` is
quick. Exit codes: 0 done, 1 the run failed, 2 wrong usage or configuration, 130 interrupted.
"""

import os
import signal
import sys
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, cast

import click

from glinthawk import __version__
from glinthawk.cli_bench import bench
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
    load_batch_config,
    load_config,
)
from glinthawk.config.compute import COMPUTE_ENVIRONMENT
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


for command in (bench, fetch, keys, status, drain, version):
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
    # Before torch is loaded, which reads it then.
    for name, value in COMPUTE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
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
