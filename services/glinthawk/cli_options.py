"""Options of the command line, made from the fields of a configuration.

A name so means the same in a file, in the environment and as an option. Knows no command.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

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
                    shown = _show_default(field.default, name)
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


def _show_default(value: Any, name: str) -> str:
    if callable(value) or value is ... or type(value).__name__ == "PydanticUndefinedType":
        return ""
    if name == "kv_memory":
        return f"{value / (1 << 30):g}GiB"
    return str(value)
