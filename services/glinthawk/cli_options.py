"""Options of the command line, made from the fields of a configuration.

A name so means the same in a file, in the environment and as an option. Knows no command.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from glinthawk.config import parse_size

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def config_options(
    kind: type[BaseModel], role: str, *, more: type[BaseModel] | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Add an option for each field of `kind`, and of `more` where it has others; and --config."""
    fields = {**kind.model_fields}
    if more is not None:
        fields |= {name: one for name, one in more.model_fields.items() if name not in fields}

    def decorate(function: Callable[..., Any]) -> Any:
        for name, field in reversed(fields.items()):
            if name in ("input",):
                continue
            flag = "--" + name.replace("_", "-")
            text = field.description or ""
            if field.annotation is bool:
                option = click.option(flag, name, is_flag=True, default=None, help=text)
            else:
                if field.default is not None and not field.is_required():
                    shown = _show_default(field)
                    text += f"  [default: {shown}]" if shown else ""
                option = click.option(flag, name, default=None, help=text, metavar="VALUE")
            function = option(function)
        config = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            default=None,
            help=f"YAML file with values for these options; GLINTHAWK_{role.upper()}_<OPTION> in "
            "the environment wins over it, and the command line over both.",
        )
        return config(function)

    return decorate


def _show_default(field: FieldInfo) -> str:
    """Return a default as it may be written on the command line; nothing where there is none."""
    value = field.default
    if value == () or field.default_factory is not None:
        return ""
    if any(getattr(item, "func", None) is parse_size for item in field.metadata):
        return _show_size(value)
    return str(value)


def _show_size(num_bytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if num_bytes % size == 0:
            return f"{num_bytes // size}{unit}"
    return str(num_bytes)
