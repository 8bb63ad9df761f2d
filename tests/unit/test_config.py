from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from glinthawk.config import (
    AttentionConfig,
    BatchConfig,
    ControlConfig,
    GatewayConfig,
    KeysConfig,
    PeerConfig,
    RemoteBatchConfig,
    StageConfig,
    UpConfig,
    load_batch_config,
    load_config,
    parse_address,
    parse_size,
)
from glinthawk.errors import InvalidConfig

KINDS: list[type[BaseModel]] = [
    AttentionConfig,
    StageConfig,
    BatchConfig,
    RemoteBatchConfig,
    GatewayConfig,
    UpConfig,
    ControlConfig,
    KeysConfig,
]


def load_attention(
    file: Path | None = None, environment: Mapping[str, str] | None = None, **arguments: Any
) -> AttentionConfig:
    return load_config(
        AttentionConfig,
        "attention",
        file=file,
        environment=environment or {},
        arguments=arguments,
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1048576", 1 << 20),
        ("512MiB", 512 << 20),
        ("512mib", 512 << 20),
        ("96Gi", 96 << 30),
        ("96 GiB", 96 << 30),
        ("1.5GiB", 3 << 29),
        ("2G", 2_000_000_000),
        ("2GB", 2_000_000_000),
        ("1T", 10**12),
        ("1TiB", 1 << 40),
        (4096, 4096),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1XiB", "1e9", "12 34", "nan"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="96GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.5:7070", ("10.0.0.5", 7070)), ("[::1]:80", ("::1", 80)), ("host:0", ("host", 0))],
)
def test_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:x", "host:65536", "host:²"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.5:7070"):
        parse_address(text)


def test_later_sources_win_file_environment_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "worker.yaml", "kv_memory: 1GiB\nthreads: 1\nname: from-file\n")
    environment = {
        "GLINTHAWK_KV_MEMORY": "2GiB",
        "GLINTHAWK_THREADS": "2",
        "GLINTHAWK_ATTENTION_THREADS": "3",
    }
    config = load_attention(file, environment, kv_memory="4GiB", log_level=None)
    assert config.name == "from-file"
    assert config.threads == 3
    assert config.kv_memory == 4 << 30
    assert config.log_level == "info"


def test_variables_of_another_role_are_not_read() -> None:
    assert load_attention(environment={"GLINTHAWK_STAGE_GATEWAY": "far:1"}).gateway != "far:1"


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert load_attention(write(tmp_path / "empty.yaml", "")).kv_memory == 1 << 30


@pytest.mark.parametrize(
    ("text", "reason"),
    [("- a\n- b\n", "no mapping"), ("a: [1\n", "cannot be read"), ("kv_mem: 1GiB\n", "no such")],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, text: str, reason: str) -> None:
    file = write(tmp_path / "bad.yaml", text)
    with pytest.raises(InvalidConfig, match=reason) as caught:
        load_attention(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"none\.yaml cannot be read"):
        load_attention(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"threads": "0"}, ["--threads", "'0'", "greater than or equal to 1"]),
        ({"threads": "2000"}, ["--threads", "less than or equal to 1024"]),
        ({"grpc_port": "70000"}, ["--grpc-port", "less than or equal to 65535"]),
        ({"transport": "udp"}, ["--transport", "'udp'", "'auto', 'tcp' or 'grpc'"]),
        ({"kv_memory": "lots"}, ["--kv-memory", "'lots'", "96GiB"]),
        ({"kv_memory": "0"}, ["--kv-memory", "greater than or equal to 1"]),
        ({"gateway": "nowhere"}, ["--gateway", "'nowhere'", "10.0.0.5:7070"]),
        ({"name": ""}, ["--name", "at least 1 character"]),
        ({"backend": "gpu"}, ["--backend", "'gpu'"]),
    ],
)
def test_a_bad_value_names_its_source_itself_and_the_limit(
    arguments: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_attention(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_every_interface_is_no_address_for_others(host: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"^host {host} .*advertise_host"):
        load_attention(host=host)
    assert load_attention(host=host, advertise_host="worker-3").host == host


def test_a_bad_variable_is_named() -> None:
    with pytest.raises(InvalidConfig, match="GLINTHAWK_ATTENTION_THREADS = 'many'"):
        load_attention(environment={"GLINTHAWK_ATTENTION_THREADS": "many"})


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(InvalidConfig, match=r"--threads.*; .*--transport|--transport.*; .*--thr"):
        load_attention(threads="0", transport="udp")


def test_what_a_batch_cannot_do_without_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r"output is missing: give it as --output"):
        load_config(
            BatchConfig, "batch", file=None, environment={}, arguments={"input": Path("in.jsonl")}
        )


def test_a_batch_needs_only_its_files() -> None:
    config = load_config(
        BatchConfig,
        "batch",
        file=None,
        environment={},
        arguments={"input": Path("in.jsonl"), "output": Path("out.jsonl")},
    )
    assert (config.model, config.stages, config.attention_workers) == ("smollm2-135m", 1, 1)
    assert config.listen_address is None


def test_default_names_are_of_the_process() -> None:
    assert PeerConfig().name == PeerConfig().name != ""


def test_a_secret_is_read_from_its_file(tmp_path: Path) -> None:
    file = write(tmp_path / "secret", "quite secret\n")
    assert AttentionConfig(secret_file=file).secret == "quite secret"
    assert AttentionConfig().secret is None


@pytest.mark.parametrize("content", ["", " \n", "two\nlines", "schlüssel"])
def test_a_file_that_makes_no_secret_is_refused(tmp_path: Path, content: str) -> None:
    config = AttentionConfig(secret_file=write(tmp_path / "secret", content))
    with pytest.raises(InvalidConfig, match="no secret"):
        _ = config.secret


def test_a_secret_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        _ = AttentionConfig(secret_file=tmp_path / "none").secret


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_says_what_it_is_and_none_can_be_changed(kind: type[BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
    assert kind.model_config["frozen"]
    assert kind.model_config["extra"] == "forbid"


# --- batches here and at a gateway

FILES = {"input": "in.jsonl", "output": "out.jsonl"}
URL = "http://10.0.0.5:8000"


def load_batch(environment: dict[str, str] | None = None, **arguments: Any) -> Any:
    return load_batch_config(file=None, environment=environment or {}, arguments=FILES | arguments)


def test_a_gateway_makes_a_batch_remote() -> None:
    assert isinstance(load_batch(), BatchConfig)
    config = load_batch(gateway=f"{URL}/v1/", priority="3")
    assert isinstance(config, RemoteBatchConfig)
    assert (config.gateway, config.priority, config.completion_window) == (URL, 3, "24h")
    by_variable = load_batch({"GLINTHAWK_BATCH_GATEWAY": URL})
    assert isinstance(by_variable, RemoteBatchConfig)


def test_the_address_that_stages_register_with_makes_no_batch_remote() -> None:
    assert isinstance(load_batch({"GLINTHAWK_GATEWAY": "10.0.0.5:7070"}), BatchConfig)


def test_options_of_tiers_are_refused_by_name_at_a_gateway() -> None:
    with pytest.raises(InvalidConfig, match=r"^--kv-memory, --stages: with --gateway"):
        load_batch(gateway=URL, stages="2", kv_memory="1GiB")


def test_options_for_a_gateway_are_refused_by_name_without_one() -> None:
    with pytest.raises(InvalidConfig, match=r"^--completion-window, --priority: only together"):
        load_batch(priority="1", completion_window="7d")


def test_a_key_comes_from_its_file_or_from_the_environment(tmp_path: Path) -> None:
    environment = {"GLINTHAWK_API_KEY": "from-environment"}
    assert load_batch(gateway=URL).api_key({}) is None
    assert load_batch(gateway=URL).api_key(environment) == "from-environment"
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert load_batch(gateway=URL, api_key_file=str(file)).api_key(environment) == "from-file"
    with pytest.raises(InvalidConfig, match="api_key_file"):
        load_batch(gateway=URL, api_key_file=str(tmp_path / "no")).api_key({})


@pytest.mark.parametrize(
    ("settings", "over_http", "over_grpc"),
    [
        ({}, False, False),
        ({"host": "0.0.0.0"}, True, True),
        ({"listen": "0.0.0.0:7070"}, False, True),
        ({"keys": "off", "listen": "10.0.0.5:7070"}, False, True),
        ({"keys": "on"}, True, True),
    ],
)
def test_keys_are_asked_for_wherever_others_reach(
    settings: dict[str, str], over_http: bool, over_grpc: bool
) -> None:
    config = GatewayConfig.model_validate(settings)
    assert (config.asks_for_keys, config.asks_for_grpc_keys) == (over_http, over_grpc)
