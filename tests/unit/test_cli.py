import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from pydantic import BaseModel

from glinthawk import __version__, cli
from glinthawk.bench.drain import DrainBenchSettings
from glinthawk.config import (
    AttentionConfig,
    BatchConfig,
    ControlConfig,
    FetchConfig,
    GatewayConfig,
    StageConfig,
    UpConfig,
)
from glinthawk.errors import InvalidConfig, PeerUnavailable, UnsupportedModel
from glinthawk.wire.frames import PROTOCOL_VERSION

ROLES: dict[str, type[BaseModel]] = {
    "batch": BatchConfig,
    "stage": StageConfig,
    "attention": AttentionConfig,
    "gateway": GatewayConfig,
    "up": UpConfig,
    "fetch": FetchConfig,
    "status": ControlConfig,
    "drain": ControlConfig,
}


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["glinthawk", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    return int(code or 0)


def run_attention_as(
    monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException
) -> list[AttentionConfig]:
    """Let the attention command end so, and collect the configurations that it got."""
    configs: list[AttentionConfig] = []

    def run_attention(config: AttentionConfig) -> int:
        configs.append(config)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("glinthawk.attention.server.run_attention", run_attention)
    return configs


@pytest.mark.parametrize(
    "arguments",
    [[], ["batch"], ["stage"], ["attention"], ["bench"], ["bench", "attention"],
     ["bench", "transport"], ["bench", "batch"], ["gateway"], ["up"], ["status"], ["drain"],
     ["keys"], ["keys", "create"], ["keys", "list"], ["keys", "revoke"]],
)  # fmt: skip
def test_help_explains_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_main(monkeypatch, *arguments, "--help") == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize("command", ROLES)
def test_help_shows_defaults_as_they_may_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run_main(monkeypatch, command, "--help") == 0
    text = capsys.readouterr().out
    defaults = re.findall(r"(?s)\[default:\s+([^]]*)\]", text)
    assert not {"()", "None", "16777216", "8589934592"} & set(defaults)
    if command in ("gateway", "up"):
        assert {"16MiB", "8GiB"} <= set(defaults)


def test_a_deadline_that_is_no_number_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "drain", "w0", "--deadline", "nan") == 2
    assert "nan is not a number of seconds" in capsys.readouterr().err


def test_the_version_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("glinthawk")


@pytest.mark.parametrize("role", ROLES)
def test_every_field_of_a_configuration_is_an_option(role: str) -> None:
    command = cli.cli.commands[role]
    options = {parameter.name: parameter for parameter in command.params}
    for name in ROLES[role].model_fields:
        assert name in options
        option = options[name]
        if isinstance(option, click.Option):
            assert option.opts == ["--" + name.replace("_", "-")]
            assert option.help


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["attention", "--nothing"], "No such option '--nothing'"),
        (["attention", "--threads", "0"], "--threads = '0': Input should be greater than or"),
        (["attention", "--kv-memory", "lots"], "'lots' is no size; write it like 512MiB"),
        (["attention", "--config", "/no/such.yaml"], "/no/such.yaml cannot be read"),
        (["stage", "--gateway", "here"], "'here' is no address"),
        (["batch"], "Missing argument 'INPUT'"),
        (["batch", "in.jsonl"], "output is missing: give it as --output"),
        (["batch", "in.jsonl", "--output", "out.jsonl", "--stages", "0"], "--stages = '0'"),
        (["batch", "in", "--gateway", "x:1", "--output", "out"], "'x:1' is no URL"),
        (["status", "--watch", "--json"], "do not go together"),
        (["drain"], "Missing argument 'WORKER'"),
        (["drain", "w", "--cancel", "--wait"], "--cancel goes alone"),
        (["drain", "w", "--deadline", "-1"], "-1.0 is not in the range"),
        (["status", "--control", "localhost"], "'localhost' is no URL"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    assert run_main(monkeypatch, *arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (0, 0),
        (1, 1),
        (InvalidConfig("so not"), 2),
        (UnsupportedModel("not this one"), 2),
        (PeerUnavailable("gone"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_code_tells_how_a_command_ended(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: int | BaseException,
    code: int,
) -> None:
    run_attention_as(monkeypatch, outcome)
    assert run_main(monkeypatch, "attention") == code
    errors = capsys.readouterr().err
    if isinstance(outcome, Exception):
        assert f"error: {outcome}" in errors
    assert "Traceback" not in errors


def test_a_command_gets_file_environment_and_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    configs = run_attention_as(monkeypatch, 0)
    file = tmp_path / "worker.yaml"
    file.write_text("name: alpha\nthreads: 3\nkv_memory: 1GiB\n", encoding="utf-8")
    monkeypatch.setenv("GLINTHAWK_ATTENTION_THREADS", "5")
    options = ["--config", str(file), "--kv-memory", "96Gi"]
    assert run_main(monkeypatch, "attention", *options) == 0
    (config,) = configs
    assert (config.name, config.threads, config.kv_memory) == ("alpha", 5, 96 << 30)


def test_version_is_printed_and_written_with_the_protocol(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_main(monkeypatch, "version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    message = tmp_path / "termination-log"
    assert run_main(monkeypatch, "version", "--protocol", "--output", str(message)) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"version": __version__, "protocol": PROTOCOL_VERSION}
    assert message.read_text(encoding="utf-8") == printed


def test_a_version_that_cannot_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = tmp_path / "none" / "log"
    assert run_main(monkeypatch, "version", "--output", str(missing)) == 2
    assert f"--output {missing} cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a namespace of processes")
def test_the_first_process_of_a_container_ends_by_sigterm_while_it_still_starts(
    tmp_path: Path,
) -> None:
    blocking = tmp_path / "config.yaml"
    os.mkfifo(blocking)
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "glinthawk", "attention"]
    unshare = subprocess.Popen([*command, "--config", str(blocking)])
    # Opening the other end returns when the process is reading its configuration.
    with blocking.open("w"):
        (first,) = psutil.Process(unshare.pid).children()
        first.terminate()
        assert unshare.wait(timeout=120) == cli.EXIT_TERMINATED


def find_imported(program: str) -> set[str]:
    """Return which modules are loaded after `program` ran in a fresh interpreter."""
    text = f"{program}\nimport sys\nprint(sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=120
    )
    modules: Any = ast.literal_eval(done.stdout.splitlines()[-1])
    return set(modules)


def test_the_command_line_loads_no_room_before_a_command_runs() -> None:
    loaded = find_imported("import glinthawk.cli")
    assert not loaded & {"torch", "numpy", "grpc", "transformers", "prometheus_client"}


def test_an_attention_worker_never_loads_torch_or_tokenizers() -> None:
    loaded = find_imported("import glinthawk.cli, glinthawk.attention.server")
    assert not loaded & {"torch", "transformers", "tokenizers", "gguf", "safetensors"}


@pytest.mark.parametrize(
    ("benchmark", "option", "text"),
    [("drain", "--contexts", "5;60"), ("memory", "--stages", "1,x"), ("memory", "--stages", "0")],
)
def test_numbers_that_are_none_are_refused_by_the_name_of_their_option(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    benchmark: str,
    option: str,
    text: str,
) -> None:
    assert run_main(monkeypatch, "bench", benchmark, option, text) == 2
    message = capsys.readouterr().err
    assert option in message
    assert repr(text) in message


def test_numbers_are_read_from_text(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, ...]] = []

    def run_drain_bench(settings: DrainBenchSettings) -> dict[str, Any]:
        taken.append(settings.contexts)
        raise InvalidConfig("that is enough")

    monkeypatch.setattr("glinthawk.bench.drain.run_drain_bench", run_drain_bench)
    assert run_main(monkeypatch, "bench", "drain", "--contexts", "5, 60") == 2
    assert taken == [(5, 60)]
