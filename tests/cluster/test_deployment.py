"""The sample on a real cluster, as `make cluster-test` brings it up: text through the Service, the
same as the batch command's, and pods that come and go.

Takes the cluster of KUBECONFIG, on which tests/cluster/bring_up.sh has run.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from glinthawk.bench.fleet import find_ports

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE, NAME, SYSTEM = "glinthawk-demo", "smollm2", "glinthawk-system"
MODEL = "smollm2-135m"
WAIT_S = 240.0


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def kubectl(*arguments: str, namespace: str = NAMESPACE) -> str:
    return run("kubectl", "--namespace", namespace, *arguments)


def is_there() -> str | None:
    """Return why the tests cannot run, None if they can."""
    if not os.environ.get("KUBECONFIG") or shutil.which("kubectl") is None:
        return "KUBECONFIG or kubectl is missing: run `make cluster-test`"
    command = ["kubectl", "--namespace", NAMESPACE, "get", "glinthawkdeployment", NAME]
    done = subprocess.run(command, capture_output=True, timeout=60)
    return None if done.returncode == 0 else f"{NAME} does not run: run `make cluster-test`"


REASON = is_there()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S:g} s"
        time.sleep(1)


def read_resource() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        kubectl("get", "glinthawkdeployment", NAME, "--output", "json")
    )
    return found


def condition(kind: str) -> str:
    conditions = read_resource()["status"]["conditions"]
    return next(one["status"] for one in conditions if one["type"] == kind)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the API's URL, through the Service."""
    (port,) = find_ports(1)
    command = ["kubectl", "--namespace", NAMESPACE, "port-forward", f"service/{NAME}"]
    forward = subprocess.Popen([*command, f"{port}:8000"], stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return True
        return False

    try:
        wait_until(answers, "the Service answers")
        yield f"http://127.0.0.1:{port}"
    finally:
        forward.kill()
        forward.wait()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    secret = json.loads(kubectl("get", "secret", f"{NAME}-api-key", "--output", "json"))
    key = base64.b64decode(secret["data"]["key"]).decode()
    with OpenAI(base_url=f"{url}/v1", api_key=key, timeout=WAIT_S, max_retries=0) as client:
        yield client


def test_the_resource_is_ready_and_says_so() -> None:
    wait_until(lambda: condition("Ready") == "True", "Ready")
    status = read_resource()["status"]
    assert status["gpuTier"]["readyStages"] == 2
    assert status["memoryTier"]["readyReplicas"] >= 1
    assert status["observedGeneration"] == read_resource()["metadata"]["generation"]


def test_texts_through_the_service_are_those_of_the_batch_command(
    client: OpenAI, tmp_path: Path
) -> None:
    prompts = ["The hawk", "One, two, three,", "Water boils at"]
    ours = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=16, temperature=0)
        .choices[0]
        .text
        for prompt in prompts
    ]
    lines = [
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt, "max_tokens": 16, "temperature": 0},
        }
        for number, prompt in enumerate(prompts)
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    model = ROOT / ".demo" / "hub" / "model"
    command = [sys.executable, "-m", "glinthawk", "batch", str(source), "--output", str(output)]
    run(*command, "--model", str(model), "--dtype", "float32", "--device", "cpu")
    answers = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)
        answers[int(answer["custom_id"])] = answer["response"]["body"]["choices"][0]["text"]
    assert [answers[number] for number in range(len(prompts))] == ours


def test_stages_hold_only_their_layers() -> None:
    logs = [kubectl("logs", f"{NAME}-stage-{stage}", "--container", "fetch") for stage in range(2)]
    for log in logs:
        entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        fetched = [one for one in entries if one["event"] == "fetching"]
        assert all(one["bytes"] < one["size"] for one in fetched)


def test_the_chart_has_a_token_generated() -> None:
    command = ["helm", "test", "glinthawk", "--namespace", SYSTEM, "--timeout", f"{WAIT_S:g}s"]
    chart, values = str(ROOT / "charts" / "glinthawk"), ["--reset-then-reuse-values"]
    run(
        *("helm", "upgrade", "glinthawk", chart, "--namespace", SYSTEM, *values),
        f"--set=test.deployment={NAME}",
        f"--set=test.namespace={NAMESPACE}",
    )
    run(*command)


def test_a_workers_pod_that_is_deleted_is_replaced_and_text_goes_on(client: OpenAI) -> None:
    labels = "app.kubernetes.io/component=attention"
    before = set(kubectl("get", "pods", "--selector", labels, "--output", "name").split())
    kubectl("delete", "--wait=false", *before)

    def is_replaced() -> bool:
        ready = "jsonpath={.items[?(@.status.containerStatuses[0].ready==true)].metadata.name}"
        names = kubectl("get", "pods", "--selector", labels, "--output", ready).split()
        return bool({f"pod/{name}" for name in names} - before)

    wait_until(is_replaced, "another worker is ready")
    wait_until(lambda: condition("Ready") == "True", "Ready again")

    def generates() -> bool:
        with contextlib.suppress(Exception):
            answer = client.completions.create(model=MODEL, prompt="The hawk", max_tokens=4)
            return answer.usage is not None and answer.usage.completion_tokens > 0
        return False

    wait_until(generates, "a text")
