"""The configuration of commands that speak to a gateway, or work beside one."""

from pathlib import Path

from pydantic import Field

from glinthawk.config.fields import (
    SecretFile,
)
from glinthawk.config.values import Config, Url, read_secret


class ControlConfig(Config):
    """A command that speaks to the control API of a gateway."""

    control: Url = Field(
        default="http://127.0.0.1:7071",
        description="URL of the gateway's control API; its port is the gateway's --control-port.",
    )
    secret_file: SecretFile = None

    @property
    def secret(self) -> str | None:
        """The cluster's shared secret, from its file."""
        return read_secret(self.secret_file)


class KeysConfig(Config):
    """A command about the API keys of a gateway."""

    data_dir: Path = Field(
        default=Path("glinthawk-data"), description="Folder of the gateway's store."
    )
