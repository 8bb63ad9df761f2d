"""The configuration of each process: one frozen model a process, composed of the parts they share.

Values come from defaults, then a YAML file (`--config`), then the environment, then the command
line; `load_config` merges them once, for `cli.py`. The name of a field is its name everywhere: in
the file, as `GLINTHAWK_<FIELD>` or `GLINTHAWK_<ROLE>_<FIELD>`, and as `--field` for the command.

    values     kinds of values           fields     settings that several have
    batch      the batch command         gateway    gateway, up
    members    stages, workers           clients    status, drain, keys
    machine    cores, memory             loading    file, environment, command line
    fetch      fetch
"""

from glinthawk.config.batch import API_KEY_VARIABLE, BatchConfig, RemoteBatchConfig
from glinthawk.config.clients import ControlConfig, KeysConfig
from glinthawk.config.fetch import FetchConfig
from glinthawk.config.gateway import GatewayConfig, UpConfig
from glinthawk.config.loading import ENVIRONMENT_PREFIX, load_batch_config, load_config
from glinthawk.config.machine import count_cores, count_memory
from glinthawk.config.members import AttentionConfig, PeerConfig, StageConfig
from glinthawk.config.values import parse_address, parse_size

__all__ = [
    "API_KEY_VARIABLE",
    "ENVIRONMENT_PREFIX",
    "AttentionConfig",
    "BatchConfig",
    "ControlConfig",
    "FetchConfig",
    "GatewayConfig",
    "KeysConfig",
    "PeerConfig",
    "RemoteBatchConfig",
    "StageConfig",
    "UpConfig",
    "count_cores",
    "count_memory",
    "load_batch_config",
    "load_config",
    "parse_address",
    "parse_size",
]
