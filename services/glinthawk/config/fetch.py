"""The configuration of `glinthawk fetch`."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from glinthawk.config.values import (
    Config,
    LogFormat,
    LogLevel,
    NumberFormat,
    Size,
    Url,
    read_credential,
)


class FetchConfig(Config):
    """Fetching what one process needs of a hub's model."""

    model: str = Field(description="Hub id, organisation/name.")
    revision: str | None = Field(default=None, description="Branch, tag or commit.")
    endpoint: Url | None = Field(
        default=None, description="URL of a mirror of the hub; none is the public one."
    )
    folder: Path = Field(description="Where the model is written; what is there is kept.")
    token_file: Path | None = Field(
        default=None, description="File with a token that opens the hub; none for public models."
    )
    stage: int | None = Field(
        default=None, ge=0, description="For which stage, counted from 0; with num_stages."
    )
    num_stages: int | None = Field(
        default=None,
        ge=1,
        description="Stages among which layers are split. Without it no tensors are fetched, "
        "which is what a gateway needs.",
    )
    device_memory: Size | None = Field(
        default=None,
        description="Memory that the stage may fill on its device; one that does not fit is "
        "refused before its tensors are fetched.",
    )
    dtype: NumberFormat = Field(
        default="auto", description="Format of weights, for device_memory; auto counts 16 bits."
    )
    log_level: LogLevel = Field(default="info", description="Least severe line that is logged.")
    log_format: LogFormat = Field(default="console", description="Lines for people or machines.")

    @model_validator(mode="after")
    def _check_stage(self) -> Self:
        if self.num_stages is not None and (self.stage or 0) >= self.num_stages:
            raise ValueError(
                f"stage {self.stage} of {self.num_stages}: stages count from 0; use at most "
                f"{self.num_stages - 1}"
            )
        return self

    @property
    def token(self) -> str | None:
        """The hub's token, from its file."""
        return None if self.token_file is None else read_credential(self.token_file, "token_file")
