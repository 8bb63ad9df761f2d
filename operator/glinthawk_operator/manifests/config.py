"""The configuration of each process, as the services' own settings have it: one ConfigMap each.

Names here are names of settings (docs/configuration.md). What is different for each pod comes
from its environment: its name, its address, which stage it is.
"""

import json
import math
from typing import Any

from glinthawk_operator.crd.quantity import QuantityError, parse_bytes, parse_quantity
from glinthawk_operator.crd.spec import PodFields
from glinthawk_operator.manifests.applied import hash_manifest
from glinthawk_operator.manifests.context import (
    CONTROL_PORT,
    GRPC_PORT,
    HTTP_PORT,
    MEMBER_DATA_PORT,
    MEMBER_GRPC_PORT,
    METRICS_PORT,
    Context,
    Manifest,
    drop_none,
)
from glinthawk_operator.manifests.names import ATTENTION, GATEWAY, STAGE

CONFIG_FILE = "config.yaml"
CONFIG_FOLDER = "/etc/glinthawk"
SECRET_FILE = "/etc/glinthawk-secret/secret"
KEYS_FILE = "/etc/glinthawk-keys/keys"
TLS_FOLDER = "/etc/glinthawk-tls"
TOKEN_FILE = "/etc/glinthawk-hub/token"

DATA_FOLDER = "/data/store"
FETCHED_FOLDERS = {GATEWAY: "/data/model", STAGE: "/cache/model"}
CLAIM_FOLDER = "/model"
"""Where the volume of pvc:// stands in a pod."""


def model_path(context: Context, component: str) -> str:
    """Return where a pod finds the model: what was fetched, or the volume of pvc://."""
    claim = context.spec.model.claim
    if claim is None:
        return FETCHED_FOLDERS[component]
    return f"{CLAIM_FOLDER}/{claim[1]}".rstrip("/")


def build_settings(context: Context, component: str) -> dict[str, Any]:
    """Return a process's settings by name."""
    build = {GATEWAY: _gateway, STAGE: _stage, ATTENTION: _attention}[component]
    spec = context.spec
    return drop_none(
        {
            "transport": spec.transport,
            "log_level": spec.log_level,
            "log_format": spec.log_format,
            "secret_file": SECRET_FILE,
            "metrics_port": METRICS_PORT,
            **build(context),
        }
    )


def build_config_map(context: Context, component: str) -> Manifest:
    """Return the ConfigMap of a component."""
    settings = build_settings(context, component)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": context.metadata(context.child(component), component),
        "data": {CONFIG_FILE: json.dumps(settings, indent=2, sort_keys=True) + "\n"},
    }


def hash_settings(context: Context, component: str) -> str:
    """Return what a component's pods carry, so that other settings make other pods."""
    return hash_manifest(build_settings(context, component))


def count_threads(tier: PodFields, threads: int | None) -> int | None:
    """Return how many threads a process is told to use: the cores that the pod may use."""
    if threads is not None:
        return threads
    cores = tier.resources.limits.get("cpu") or tier.resources.requests.get("cpu")
    if cores is None:
        return None
    try:
        return max(1, math.ceil(parse_quantity(cores)))
    except QuantityError:
        return None


def _gateway(context: Context) -> dict[str, Any]:
    spec, gateway = context.spec, context.spec.gateway
    has_tls = gateway.tls_secret is not None
    return {
        "host": "0.0.0.0",
        "port": HTTP_PORT,
        "listen": f"0.0.0.0:{GRPC_PORT}",
        "control_port": CONTROL_PORT,
        "data_dir": DATA_FOLDER,
        "model": model_path(context, GATEWAY),
        "served_model_name": list(spec.model.model_names),
        "stages": spec.gpu_tier.stages,
        "kv_dtype": spec.memory_tier.kv_cache.dtype,
        "max_sequence_length": spec.model.max_sequence_length,
        "seed": gateway.seed,
        "prefill_tokens": gateway.prefill_tokens,
        "max_lane_rows": gateway.max_lane_rows,
        "min_lane_rows": gateway.min_lane_rows,
        "lanes": gateway.lanes,
        "keys_file": KEYS_FILE,
        "tls_certificate": f"{TLS_FOLDER}/tls.crt" if has_tls else None,
        "tls_key": f"{TLS_FOLDER}/tls.key" if has_tls else None,
        "max_body_bytes": parse_bytes(gateway.max_body_bytes),
        "max_file_bytes": parse_bytes(gateway.max_file_bytes),
        "max_line_bytes": parse_bytes(gateway.max_line_bytes),
        "max_key_requests": gateway.max_key_requests,
        "max_key_tokens": gateway.max_key_tokens,
        "max_key_batches": gateway.max_key_batches,
    }


def _member(context: Context) -> dict[str, Any]:
    return {
        "gateway": f"{context.gateway_host}:{GRPC_PORT}",
        "host": "0.0.0.0",
        "grpc_port": MEMBER_GRPC_PORT,
        "data_port": MEMBER_DATA_PORT,
    }


def _stage(context: Context) -> dict[str, Any]:
    tier = context.spec.gpu_tier
    return {
        **_member(context),
        "model": model_path(context, STAGE),
        "num_stages": tier.stages,
        "device": tier.device,
        "device_memory": tier.gpu_memory_bytes,
        "dtype": context.spec.model.dtype,
        "threads": count_threads(tier, tier.threads),
        "max_rows": tier.max_rows,
    }


def _attention(context: Context) -> dict[str, Any]:
    tier = context.spec.memory_tier
    return {
        **_member(context),
        "kv_memory": tier.kv_cache.memory_bytes,
        "threads": count_threads(tier, tier.threads),
        "drain_timeout_s": tier.scaling.scale_down.drain_timeout_seconds,
    }
