"""Commands for who runs a gateway: `glinthawk keys | status | drain | version`.

They are short, speak to a gateway or its store, and load neither a model nor torch.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import click

from glinthawk import __version__
from glinthawk.cli_options import CONTEXT, config_options
from glinthawk.config import ControlConfig, KeysConfig, load_config
from glinthawk.errors import InvalidConfig


@click.group(context_settings=CONTEXT)
def keys() -> None:
    """Make, list and revoke API keys, also while the gateway runs.

    The store keeps a hash of each key; the key itself is shown once, when it is made.
    """


@keys.command("create", context_settings=CONTEXT)
@click.argument("name")
@config_options(KeysConfig, "keys")
def create(config_file: Path | None, name: str, **arguments: Any) -> int:
    """Make a key NAME and print it, alone, on standard output. It is not shown again."""
    config = _load_keys_config(config_file, arguments)
    from glinthawk.gateway.key_commands import create_key

    click.echo(create_key(config.data_dir, name))
    click.echo(f"key {name} is valid; it is not shown again", err=True)
    return 0


@keys.command("list", context_settings=CONTEXT)
@config_options(KeysConfig, "keys")
def list_all(config_file: Path | None, **arguments: Any) -> int:
    """Show the names of all keys, when they were made, and when they were revoked."""
    config = _load_keys_config(config_file, arguments)
    from rich.console import Console

    from glinthawk.gateway.key_commands import build_key_table, list_keys

    Console(soft_wrap=True).print(build_key_table(list_keys(config.data_dir)))
    return 0


@keys.command("revoke", context_settings=CONTEXT)
@click.argument("name")
@config_options(KeysConfig, "keys")
def revoke(config_file: Path | None, name: str, **arguments: Any) -> int:
    """Make the key NAME invalid; a running gateway refuses it within seconds."""
    config = _load_keys_config(config_file, arguments)
    from glinthawk.gateway.key_commands import revoke_key

    revoke_key(config.data_dir, name)
    click.echo(f"key {name} is revoked", err=True)
    return 0


@click.command(context_settings=CONTEXT)
@config_options(ControlConfig, "control")
@click.option("--watch", is_flag=True, help="Keep it on the screen until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the document of the control API.")
def status(config_file: Path | None, watch: bool, as_json: bool, **arguments: Any) -> int:
    """Show how a gateway stands: tiers, workers, KV memory, and jobs with their progress.

    Ends with 0 when the gateway answered, ready or not, and 1 when it did not.
    """
    if watch and as_json:
        raise click.UsageError("--watch and --json do not go together")
    config = _load_control_config(config_file, arguments)
    from rich.console import Console

    from glinthawk.gateway.control_client import ControlClient
    from glinthawk.gateway.status import show_status, watch_status

    with ControlClient(config.control, secret=config.secret) as client:
        if watch:
            watch_status(client, Console())
        show_status(client, Console(), as_json=as_json)
    return 0


def _refuse_nan(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Return a number that is one: every range lets not-a-number pass."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number of seconds")
    return value


@click.command(context_settings=CONTEXT)
@click.argument("worker")
@config_options(ControlConfig, "control")
@click.option(
    "--deadline",
    type=click.FloatRange(0, 7 * 24 * 3600),
    callback=_refuse_nan,
    default=None,
    help="Seconds for which sequences may run on where they are.  [default: 300]",
)
@click.option("--wait", is_flag=True, help="Follow it until the worker is drained.")
@click.option("--cancel", is_flag=True, help="Take the drain back.")
def drain(
    config_file: Path | None,
    worker: str,
    *,
    deadline: float | None,
    wait: bool,
    cancel: bool,
    **arguments: Any,
) -> int:
    """Place nothing more on the attention worker WORKER, so that it can be taken away.

    With --wait it ends with 0 once the worker is drained, and with 1 if it is not in time.
    """
    if cancel and (wait or deadline is not None):
        raise click.UsageError("--cancel goes alone, without --wait and --deadline")
    config = _load_control_config(config_file, arguments)
    from rich.console import Console

    from glinthawk.gateway.control_client import ControlClient
    from glinthawk.gateway.draining import DEADLINE_S, begin_drain, follow_drain

    console = Console(stderr=True, soft_wrap=True)
    deadline_s = DEADLINE_S if deadline is None else deadline
    with ControlClient(config.control, secret=config.secret) as client:
        if cancel:
            client.cancel_drain(worker)
            console.print(f"{worker} gets sequences again", highlight=False)
            return 0
        begin_drain(client, worker, deadline_s, console)
        if wait:
            follow_drain(client, worker, deadline_s, console)
    return 0


@click.command(context_settings=CONTEXT)
@click.option("--protocol", is_flag=True, help="Also the protocol between processes, as JSON.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Also write it to this file, such as a container's termination message.",
)
def version(protocol: bool, output: Path | None) -> int:
    """Print the version; processes work together only if their protocols are the same."""
    text = __version__
    if protocol:
        from glinthawk.wire.frames import PROTOCOL_VERSION

        text = json.dumps({"version": __version__, "protocol": PROTOCOL_VERSION})
    click.echo(text)
    if output is not None:
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidConfig(f"--output {output} cannot be written: {error}") from error
    return 0


def _load_keys_config(file: Path | None, arguments: dict[str, Any]) -> KeysConfig:
    return load_config(KeysConfig, "keys", file=file, environment=os.environ, arguments=arguments)


def _load_control_config(file: Path | None, arguments: dict[str, Any]) -> ControlConfig:
    return load_config(
        ControlConfig, "control", file=file, environment=os.environ, arguments=arguments
    )
