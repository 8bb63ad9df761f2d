"""The operator's settings: GLINTHAWK_OPERATOR_<SETTING> in the environment, or --setting.

The chart's `operator.config` has the same names in camelCase.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from glinthawk_operator.errors import InvalidSettings

PREFIX = "GLINTHAWK_OPERATOR_"


class Settings(BaseModel):
    """How the operator runs. Nothing here is about a single resource."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gateway_image: str = Field(
        default="glinthawk-gateway", min_length=1, description="Image where a spec names none."
    )
    stage_image: str = Field(
        default="glinthawk-stage", min_length=1, description="Image where a spec names none."
    )
    attention_image: str = Field(
        default="glinthawk-attention", min_length=1, description="Image where a spec names none."
    )
    namespaces: tuple[str, ...] = Field(
        default=(), description="Namespaces whose resources are run, by commas; none: all."
    )
    pod_name: str = Field(default="operator", description="Who holds the lease.")
    pod_namespace: str | None = Field(
        default=None, description="Where the operator runs; none: outside of the cluster."
    )
    lease_name: str = Field(
        default="glinthawk-operator", min_length=1, description="Lease by which one acts."
    )
    lease_seconds: float = Field(
        default=15.0, ge=3, description="Seconds without a sign of life before another takes over."
    )
    workers: int = Field(default=8, ge=1, le=64, description="Resources reconciled at a time.")
    poll_seconds: float = Field(
        default=5.0, gt=0, description="Seconds from one look at a gateway to the next."
    )
    control_url: str = Field(
        default="http://{service}.{namespace}.svc:7071",
        description="URL of a control API; {namespace}, {name} and {service} are filled in.",
    )
    control_timeout_seconds: float = Field(
        default=3.0, gt=0, description="Seconds that a gateway may take to answer."
    )
    api_timeout_seconds: float = Field(
        default=10.0, gt=0, description="Seconds that a call of the API server may take."
    )
    lost_node_seconds: float = Field(
        default=60.0, ge=0, description="Seconds NotReady after which a node's stages move on."
    )
    host: str = Field(default="0.0.0.0", description="Interface of health and metrics.")
    health_port: int = Field(default=8080, ge=0, le=65535, description="Port of /healthz.")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Port of /metrics.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe line that is logged."
    )
    log_format: Literal["json", "console"] = Field(
        default="json", description="Lines for machines or people."
    )

    @field_validator("namespaces", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())


def load_settings(environment: Mapping[str, str], arguments: Sequence[str]) -> Settings:
    """Return the settings; arguments, `--name value`, win over the environment.

    Raises:
        InvalidSettings: one is unknown or wrong.
    """
    values: dict[str, Any] = {
        name: environment[PREFIX + name.upper()]
        for name in Settings.model_fields
        if PREFIX + name.upper() in environment
    }
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        name, separator, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not (separator or rest):
            raise InvalidSettings(f"{flag!r} is no --setting with a value; see --help")
        values[name.replace("-", "_")] = value if separator else rest.pop(0)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, one['loc']))} = {one['input']!r}: {one['msg']}"
            for one in error.errors()
        )
        raise InvalidSettings(problems) from error


def describe_settings() -> str:
    """Return the settings for --help."""
    lines = [
        f"  --{name.replace('_', '-'):<26} {field.description}  [default: {field.default}]"
        for name, field in Settings.model_fields.items()
    ]
    return "Runs GlinthawkDeployments on Kubernetes.\n\n" + "\n".join(lines)
