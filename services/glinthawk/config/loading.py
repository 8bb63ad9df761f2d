"""Merges defaults, file, environment and command line into a configuration, once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from glinthawk.config.batch import BatchConfig, RemoteBatchConfig
from glinthawk.errors import InvalidConfig

ConfigT = TypeVar("ConfigT", bound=BaseModel)

ENVIRONMENT_PREFIX = "GLINTHAWK_"


def load_config(
    kind: type[ConfigT],
    role: str,
    *,
    file: Path | None,
    environment: Mapping[str, str],
    arguments: Mapping[str, Any],
) -> ConfigT:
    """Merge a YAML file, the environment and the command line into the config of `role`.

    Later ones win. `GLINTHAWK_STAGE_THREADS` wins over `GLINTHAWK_THREADS` for the role stage.

    Raises:
        InvalidConfig: a value is unknown or wrong; the message names all of them, their limits
            and where they came from.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for field in kind.model_fields:
        for name in (field, f"{role}_{field}"):
            variable = ENVIRONMENT_PREFIX + name.upper()
            if variable in environment:
                values[field] = environment[variable]
                sources[field] = variable
    for name, value in ({} if file is None else _read_file(file)).items():
        if name not in values:
            values[name] = value
            sources[name] = f"{name} in {file}"
    for name, value in arguments.items():
        if value is not None:
            values[name] = value
            sources[name] = "--" + name.replace("_", "-")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InvalidConfig(_describe(error, sources)) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfig(f"config file {path} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InvalidConfig(f"config file {path} holds no mapping of names to values")
    return {str(name): value for name, value in content.items()}


def _describe(error: ValidationError, sources: Mapping[str, str]) -> str:
    """Return one line for each wrong value: where it stands, what it is, what is wrong."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if not name:
            lines.append(message)  # about fields together, which it names
        elif problem["type"] == "missing":
            lines.append(f"{name} is missing: give it as --{name.replace('_', '-')}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{sources.get(name, name)}: there is no such setting; see --help")
        else:
            lines.append(f"{sources.get(name, name)} = {problem['input']!r}: {message}")
    return "; ".join(lines)


def load_batch_config(
    *, file: Path | None, environment: Mapping[str, str], arguments: Mapping[str, Any]
) -> BatchConfig | RemoteBatchConfig:
    """Return the configuration of the batch command; with a gateway, that of a remote run.

    Raises:
        InvalidConfig: as `load_config`, and if options of the two do not go together.
    """
    given = {name for name, value in arguments.items() if value is not None}
    is_remote = "gateway" in given or "GLINTHAWK_BATCH_GATEWAY" in environment
    mine, other = RemoteBatchConfig.model_fields, BatchConfig.model_fields
    if not is_remote:
        mine, other = other, mine
    stray = sorted("--" + name.replace("_", "-") for name in given - set(mine) if name in other)
    if stray and is_remote:
        raise InvalidConfig(
            f"{', '.join(stray)}: with --gateway, model and tiers are the gateway's; leave "
            "them out, or leave --gateway out to run the file here"
        )
    if stray:
        raise InvalidConfig(f"{', '.join(stray)}: only together with --gateway; give it too")
    chosen = {name: value for name, value in arguments.items() if name in mine}
    load: type[BatchConfig | RemoteBatchConfig] = RemoteBatchConfig if is_remote else BatchConfig
    return load_config(load, "batch", file=file, environment=environment, arguments=chosen)
