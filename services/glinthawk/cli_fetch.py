"""`glinthawk fetch`: what an init container runs, so that a process finds its model on a disk."""

import os
from pathlib import Path
from typing import Any

import click

from glinthawk.cli_options import CONTEXT, config_options
from glinthawk.config import FetchConfig, load_config


@click.command(context_settings=CONTEXT)
@config_options(FetchConfig, "fetch")
def fetch(config_file: Path | None, **arguments: Any) -> int:
    """Fetch of a hub's model what one process needs into --folder, which then is a model.

    With --num-stages and --stage these are the tensors of that stage's layers; else none, only
    the tokenizer and the shape. What is there already is not fetched again.
    """
    config = load_config(
        FetchConfig, "fetch", file=config_file, environment=os.environ, arguments=arguments
    )
    from glinthawk.telemetry.logging import configure_logging

    configure_logging(config.log_level, config.log_format, role="fetch", name="fetch")
    return run_fetch(config)


def run_fetch(config: FetchConfig) -> int:
    """Fetch, and return the exit code.

    Raises:
        GlinthawkError: the model is not to be had, or does not fit.
    """
    from glinthawk.core.dtype import DType
    from glinthawk.models import fetch as room
    from glinthawk.models.hub import Hub
    from glinthawk.models.memory import check_stage_fits

    is_stage = config.num_stages is not None
    stage, num_stages = config.stage or 0, config.num_stages or 1
    request = room.FetchRequest(
        config.model, config.revision, (stage, num_stages) if is_stage else None
    )
    hub = Hub(config.endpoint, config.token)
    repository = room.describe_or_keep(hub, request, config.folder)
    if repository is None:
        room.log.info("already_fetched", folder=str(config.folder))
        return 0
    room.forget_fetched(config.folder)
    shape = room.read_shape(hub, repository, config.folder)
    layers = shape.split_layers(num_stages)[stage]
    if is_stage and config.device_memory is not None:
        itemsize = 2 if config.dtype == "auto" else DType.parse(config.dtype).itemsize
        check_stage_fits(
            shape, stage, num_stages, device_memory=config.device_memory, itemsize=itemsize
        )
    fetched = room.fetch_tensors(
        hub, repository, shape, config.folder, layers if is_stage else None
    )
    room.record_fetched(config.folder, request, repository.commit)
    room.log.info("fetched", bytes=fetched, commit=repository.commit, folder=str(config.folder))
    return 0
