"""Kinds of values that settings have, how they are written, and files that hold secrets."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from glinthawk.errors import InvalidConfig

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate("kmgt", start=1)}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", re.IGNORECASE)


def parse_size(value: Any) -> Any:
    """Return the bytes of a size such as ``96GiB``, ``512Mi``, ``2G`` or 1048576.

    Raises:
        ValueError: it is no size.
    """
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no size; write it like 512MiB, 96GiB or 1048576")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_address(value: str) -> tuple[str, int]:
    """Return host and port of ``host:port``.

    Raises:
        ValueError: it is none.
    """
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{value!r} is no address; write it like 10.0.0.5:7070")
    return host.strip("[]"), int(port)


def _check_address(value: str | None) -> str | None:
    if value is not None:
        parse_address(value)
    return value


LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _split_names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(",") if name.strip())


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is no URL; write it like http://10.0.0.5:8000")
    return value.rstrip("/").removesuffix("/v1")


Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
Address = Annotated[str, BeforeValidator(_check_address)]
Port = Annotated[int, Field(ge=0, le=65535)]
Url = Annotated[str, AfterValidator(_check_url)]
Transport = Literal["auto", "tcp", "grpc"]
NumberFormat = Literal["auto", "float16", "bfloat16", "float32"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["json", "console"]


class Config(BaseModel):
    """What every configuration is: frozen, and without fields that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def read_secret(path: Path | None) -> str | None:
    """Return the secret in the file `secret_file`, None without one; raises InvalidConfig."""
    return None if path is None else read_credential(path, "secret_file")


def read_credential(path: Path, setting: str) -> str:
    """Return the one line of printable ASCII in the file of a setting.

    Raises:
        InvalidConfig: the file cannot be read, or holds something else.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{setting} {path} cannot be read: {error}") from error
    if not secret or not secret.isascii() or not secret.isprintable():
        raise InvalidConfig(
            f"{setting} {path} holds {len(secret)} characters that make no secret: write one "
            "line of printable ASCII into it, such as 'openssl rand -hex 32' prints"
        )
    return secret
