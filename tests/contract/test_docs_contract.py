"""What the documentation says exists: commands, options, targets, links, fields and metrics.

The reference pages are generated here, which makes this file longer than others: what writes
a page and what compares it must not drift apart. After a change of a setting or a metric:

    PYTHONPATH=services .venv/bin/python tests/contract/test_docs_contract.py
"""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from glinthawk import __version__
from glinthawk.cli import cli
from glinthawk.config import (
    API_KEY_VARIABLE,
    AttentionConfig,
    BatchConfig,
    ControlConfig,
    FetchConfig,
    GatewayConfig,
    KeysConfig,
    RemoteBatchConfig,
    StageConfig,
    UpConfig,
    load_batch_config,
    load_config,
    parse_size,
)
from glinthawk.errors import InvalidRequest
from glinthawk.gateway.http.metrics import HttpMetrics
from glinthawk.gateway.jobs.metrics import JobMetrics
from glinthawk.gateway.neutral_fields import CHAT_FIELDS, COMPLETION_FIELDS, refuse_unsupported
from glinthawk.gateway.requests import BatchLine, parse_line
from glinthawk.telemetry.metrics import ServiceMetrics
from glinthawk.wire.frames import FrameKind

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "operator")]  # when this file is run by itself

from api_page import (  # noqa: E402
    describe_apis,
    find_description,
    list_operations,
    render_api,
)
from resource_page import render_resource  # noqa: E402

DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])
CONFIGS: dict[str, type[BaseModel]] = {
    "batch": BatchConfig,
    "batch --gateway": RemoteBatchConfig,
    "gateway": GatewayConfig,
    "up": UpConfig,
    "stage": StageConfig,
    "attention": AttentionConfig,
    "fetch": FetchConfig,
    "status and drain": ControlConfig,
    "keys": KeysConfig,
}
"""By the heading of their section."""

ROLES = {"batch --gateway": "batch", "status and drain": "control"}
"""In the names of variables, where the heading is not it."""

COMPUTED_DEFAULTS = {
    "_default_name": "host name and process id",
    "count_cores": "the cores of the process",
}
FOREIGN_OPTIONS = {
    *("--model", "--no-deps"),
    *("--build-arg", "--force", "--output", "--previous", "--replicas", "--selector"),
}
"""Of pip, vllm, docker and kubectl, which the pages also name."""

# --- the generated pages

CONFIGURATION_HEAD = """\
# Configuration

This page is generated from the code.

A setting has one name everywhere: in a YAML file (`--config FILE`), in the environment, and on the
command line. Later ones win: default, file, environment, command line.

In the environment a setting is `GLINTHAWK_<ROLE>_<SETTING>`, as listed, or `GLINTHAWK_<SETTING>`
for all roles. The one with the role wins. `GLINTHAWK_STAGE_THREADS=8` sets `--threads` of a stage.

A file is a mapping of settings to values:

```yaml
kv_memory: 96GiB
threads: 16
```

Sizes are written like `96GiB`, `512Mi`, `2G` or `1048576`; addresses like `10.0.0.5:7070`. A
setting that does not exist, or a value out of bounds, ends the process with exit code 2 and a
message that names the setting, where it came from, and the bound.
"""

CONFIGURATION_ROLES = {
    "batch": "The batch command starts its own stages and workers, and hands them what they need.",
    "batch --gateway": (
        "With `--gateway`, or `GLINTHAWK_BATCH_GATEWAY`, the batch command has a gateway run the "
        "file, and knows\nthese settings alone."
    ),
    "gateway": "The gateway: the API, jobs, and the tiers that register.",
    "up": "A gateway with stages and attention workers of its own.",
    "stage": "A stage: the weights of a run of layers.",
    "attention": "An attention worker: KV cache and attention.",
    "fetch": "Fetching of a hub's model what one process needs, as an init container does.",
    "status and drain": "Commands that speak to the control API of a gateway.",
    "keys": "Commands about API keys, beside a gateway.",
}

METRICS_HEAD = """\
# Metrics

This page is generated from the code.

Every process offers `/metrics` for Prometheus on a port of its own (`--metrics-port`). The names
are the same in all of them, but for those of batches and of HTTP calls, which a gateway alone has;
it shows all of its own on the port of its API too. Those that a process's role does not move stay
at 0, or absent where they have labels. Times are in seconds, sizes in bytes. Prompts and tokens
never appear, nor do ids. [Operations](operations.md#what-to-watch) says which to watch.

| name | type | meaning |
| --- | --- | --- |
"""

METRICS_TAIL = """
A counter only grows, and starts at 0 with its process; look at its rate. A histogram also has
`_bucket`, `_sum` and `_count`. Its buckets reach up to:
"""


def render_configuration() -> str:
    """Return docs/configuration.md."""
    parts = [CONFIGURATION_HEAD]
    for heading, kind in CONFIGS.items():
        role = ROLES.get(heading, heading)
        parts.append(f"\n## glinthawk {heading}\n\n{CONFIGURATION_ROLES[heading]}\n\n")
        parts.append("| setting | option | environment | default | bounds | meaning |\n")
        parts.append("| --- | --- | --- | --- | --- | --- |\n")
        schema = kind.model_json_schema()
        for name, field in kind.model_fields.items():
            option = "INPUT" if name == "input" else "--" + name.replace("_", "-")
            variable = f"GLINTHAWK_{role.upper()}_{name.upper()}"
            bounds = describe_bounds(schema["properties"][name])
            cells = (f"`{name}`", f"`{option}`", f"`{variable}`", describe_default(field))
            parts.append(f"| {' | '.join(cells)} | {bounds} | {field.description} |\n")
    return "".join(parts)


def describe_default(field: Any) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return COMPUTED_DEFAULTS[field.default_factory.__name__]
    if field.default is None:
        return "none"
    if field.default is False:
        return "off"
    if field.default == ():
        return "none"
    if any(getattr(item, "func", None) is parse_size for item in field.metadata):
        unit = "GiB" if field.default >= 1 << 30 else "MiB"
        return f"`{field.default >> (30 if unit == 'GiB' else 20)}{unit}`"
    return f"`{field.default}`"


def describe_bounds(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        (schema,) = [one for one in schema["anyOf"] if one["type"] != "null"]
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema["type"] == "array":
        return "names"
    if schema["type"] == "boolean":
        return "on or off"
    if schema["type"] == "string":
        is_bounded = "maxLength" in schema
        length = f"{schema['minLength']} to {schema['maxLength']} characters" if is_bounded else ""
        return "a path" if schema.get("format") == "path" else length or "text"
    low, high = schema.get("minimum", schema.get("ge")), schema.get("maximum")
    if "exclusiveMaximum" in schema:
        high = schema["exclusiveMaximum"] - 1
    if low is None:
        return f"above {schema['exclusiveMinimum']}"
    return f"from {low:,}" if high is None else f"{low:,} to {high:,}"


def list_metrics() -> list[tuple[str, MetricWrapperBase]]:
    """Return each metric with the name that Prometheus shows, in the order of the code."""
    metrics = [
        *vars(ServiceMetrics(CollectorRegistry())).values(),
        *vars(JobMetrics(CollectorRegistry())).values(),
        *vars(HttpMetrics(CollectorRegistry())).values(),
    ]
    return [(shown_name(one), one) for one in metrics if isinstance(one, MetricWrapperBase)]


def shown_name(metric: MetricWrapperBase) -> str:
    (family,) = metric.collect()
    labels = f"{{{', '.join(metric._labelnames)}}}" if metric._labelnames else ""
    return (f"{family.name}_total" if family.type == "counter" else family.name) + labels


def render_metrics() -> str:
    """Return docs/metrics.md."""
    parts = [METRICS_HEAD]
    buckets: dict[str, list[str]] = {}
    for name, metric in list_metrics():
        (family,) = metric.collect()
        parts.append(f"| `{name}` | {family.type} | {family.documentation} |\n")
        if isinstance(metric, Histogram):
            bounds = metric._upper_bounds[:-1]  # samples come with labels only
            buckets.setdefault(", ".join(f"{bound:g}" for bound in bounds), []).append(name)
    parts.append(METRICS_TAIL)
    for limits, names in buckets.items():
        parts.append(f"\n- {', '.join(f'`{name}`' for name in names)}:\n  {limits}\n")
    return "".join(parts)


GENERATED = {
    "api-reference.md": render_api,
    "configuration.md": render_configuration,
    "metrics.md": render_metrics,
    "resource.md": render_resource,
}


@pytest.mark.parametrize("page", GENERATED)
def test_reference_pages_are_in_step_with_the_code(page: str) -> None:
    if page == "api-reference.md":
        pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed")
    written = (DOCS / page).read_text(encoding="utf-8")
    assert written == GENERATED[page](), (
        "the code has changed: run `PYTHONPATH=services .venv/bin/python "
        "tests/contract/test_docs_contract.py`"
    )


def test_every_part_of_the_apis_is_described() -> None:
    """In whole sentences, so that the reference reads as one."""
    for document in describe_apis():
        for method, path, operation in list_operations(document):
            texts = [
                find_description(document, one)
                for one in (operation, *operation.get("parameters", ()))
            ]
            assert all(text.endswith(".") for text in texts), f"{method} {path}"
        for name, node in document["components"]["schemas"].items():
            fields = node.get("properties", {}).values()
            texts = [find_description(document, one) for one in (node, *fields)]
            assert all(text.endswith(".") for text in texts), name


# --- commands


def read_blocks(page: Path, language: str = "") -> Iterator[str]:
    """Yield the content of the page's fenced blocks in `language`."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] == language:
            yield match[2]


def read_inline_code(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def read_commands(page: Path) -> list[list[str]]:
    """Return the glinthawk commands in the page's blocks, as words."""
    lines = [
        line for block in read_blocks(page) for line in block.replace("\\\n", " ").splitlines()
    ]
    return [
        shlex.split(line, comments=True)
        for line in lines
        if re.match(r"(\.venv/bin/)?glinthawk\s", line)
    ]


def list_commands() -> dict[str, click.Command]:
    """Return every command that does something, by its words."""
    commands: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        commands |= {f"{name} {child}": one for child, one in inner.items()}
        if not inner:
            commands[name] = command
    return commands


COMMANDS = list_commands()
GROUPS = {words.split()[0] for words in COMMANDS if " " in words}
ALL_OPTIONS = {flag for one in COMMANDS.values() for item in one.params for flag in item.opts}
DOCUMENTED = [(page, words) for page in PAGES for words in read_commands(page)]


def parse(words: list[str]) -> None:
    """Parse a documented command as the command line would, values included."""
    size = 2 if words[1] in GROUPS else 1
    name, arguments = " ".join(words[1 : 1 + size]), words[1 + size :]
    assert name in COMMANDS, f"there is no command 'glinthawk {name}'"
    context = COMMANDS[name].make_context(name, arguments)
    context.params.pop("config_file", None)
    if name == "batch":
        load_batch_config(file=None, environment={}, arguments=context.params)
    elif name in CONFIGS:
        load_config(CONFIGS[name], name, file=None, environment={}, arguments=context.params)


@pytest.mark.parametrize(("page", "words"), DOCUMENTED, ids=lambda value: str(value)[-60:])
def test_documented_commands_parse(page: Path, words: list[str]) -> None:
    parse(words)


def test_every_role_and_benchmark_is_documented() -> None:
    shown = {" ".join(words[1:3] if words[1] in GROUPS else words[1:2]) for _, words in DOCUMENTED}
    assert shown >= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_option(name: str) -> None:
    shown = CliRunner().invoke(cli, [*name.split(), "--help"])
    assert shown.exit_code == 0
    for item in COMMANDS[name].params:
        if isinstance(item, click.Option):
            assert item.opts[-1] in shown.output


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_options_exist(page: Path) -> None:
    named = {
        option for code in read_inline_code(page) for option in re.findall(r"--[a-z][a-z-]+", code)
    }
    assert named <= ALL_OPTIONS | FOREIGN_OPTIONS | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets
    if page.name == "README.md" and page.parent == ROOT:
        assert {"demo", "test"} <= named


def test_named_environment_variables_exist() -> None:
    known = {
        f"GLINTHAWK_{middle}{name.upper()}"
        for heading, kind in CONFIGS.items()
        for name in kind.model_fields
        for middle in ("", f"{ROLES.get(heading, heading).upper()}_")
    } | {API_KEY_VARIABLE}
    for page in PAGES:
        for code in read_inline_code(page):
            named = set(re.findall(r"GLINTHAWK_[A-Z_]+[A-Z]", code.split("<")[0]))
            assert named <= known, page


def test_first_commands_of_the_readme_are_demo_and_test() -> None:
    first = next(read_blocks(ROOT / "README.md"))
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


# --- links and names


def read_anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.is_file(), f"{page.name} links to {target}"
        assert not anchor or anchor in read_anchors(other), f"{page.name} links to {target}"


def test_every_page_is_linked() -> None:
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    }
    assert set(PAGES) - {ROOT / "README.md"} <= linked


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [path.name[:4] for path in sorted((DOCS / "adr").glob("[0-9]*.md"))]
    assert numbers == [f"{number:04d}" for number in range(1, len(numbers) + 1)]


def test_changelog_names_the_present_version() -> None:
    text = (DOCS / "changelog.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", text, re.MULTILINE)[0] == __version__


def test_every_frame_kind_is_in_the_architecture_page() -> None:
    rows = re.findall(r"^\| ([A-Z_, ]+) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in row.split(", ")}
    assert named == {kind.name for kind in FrameKind}


# --- the batch command's page


def read_table_rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading, without its first two lines."""
    section = page.read_text(encoding="utf-8").split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_batch_page_lists_every_body_parameter() -> None:
    chat: set[str] = set()
    completions: set[str] = set()
    for heading in ("What to answer", "How long", "Which tokens", "What to show"):
        for names, endpoint, *_ in read_table_rows(DOCS / "batch.md", heading):
            fields = re.findall(r"`(\w+)`", names)
            chat |= set(fields if endpoint != "completions" else [])
            completions |= set(fields if endpoint != "chat" else [])
    assert chat == CHAT_FIELDS
    assert completions == COMPLETION_FIELDS


def test_documented_neutral_values_are_accepted() -> None:
    rows = read_table_rows(DOCS / "batch.md", "Accepted and without effect")
    assert rows
    for name, value in rows:
        for is_chat in (True, False):
            refuse_unsupported({name.strip("`"): json.loads(value.strip("`"))}, is_chat=is_chat)


def test_documented_refusals_are_refused_by_name() -> None:
    text = (DOCS / "batch.md").read_text(encoding="utf-8")
    sentence = text.split("Refused at any value but null:", 1)[1].split(".", 1)[0]
    names = re.findall(r"`(\w+)`", sentence)
    assert names
    for name in names:
        refuse_unsupported({name: None}, is_chat=True)
        with pytest.raises(InvalidRequest) as caught:
            refuse_unsupported({name: {"any": 1}}, is_chat=True)
        assert caught.value.param == name


def read_json_lines() -> list[dict[str, Any]]:
    """Return the lines of batch files that the pages show."""
    lines = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines += [json.loads(line) for line in re.findall(r"^\{.*\}$", text, re.MULTILINE)]
    return lines


def test_shown_input_lines_are_good_ones() -> None:
    inputs = [line for line in read_json_lines() if "method" in line]
    assert len(inputs) >= 5
    for line in inputs:
        parsed = parse_line(json.dumps(line).encode(), 1)
        assert isinstance(parsed, BatchLine)
        refuse_unsupported(parsed.body, is_chat=parsed.endpoint.endswith("chat/completions"))


def test_shown_output_lines_have_the_form_of_output_lines() -> None:
    outputs = [line for line in read_json_lines() if "response" in line]
    assert {line["response"]["status_code"] for line in outputs} == {200, 400}
    for line in outputs:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert list(line["response"]) == ["status_code", "request_id", "body"]


def main() -> None:
    """Write the generated pages."""
    for page, render in GENERATED.items():
        (DOCS / page).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
