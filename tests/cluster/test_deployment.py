"""The sample on a real cluster, as `make cluster-test` brings it up: text through the Service, the
same as the batch command's, and a worker that goes.
"""

import json
from pathlib import Path

from batch_runs import completion, run_batch
from cluster.api import Api, generate
from cluster.live import (
    MODEL_FOLDER,
    NAME,
    NAMESPACE,
    RELEASE,
    ROOT,
    WAIT_S,
    Deployment,
    helm,
    kubectl,
    wait_until,
)

PROMPTS = ("The hawk", "One, two, three,", "Water boils at")
NUM_TOKENS = 16


def test_the_resource_is_ready_and_says_so(demo: Deployment) -> None:
    body = demo.read()
    status = body["status"]
    assert status["gpuTier"]["readyStages"] == 2
    assert status["memoryTier"]["readyReplicas"] >= 1
    assert status["observedGeneration"] == body["metadata"]["generation"]


def test_texts_through_the_service_are_those_of_the_batch_command(
    demo: Deployment, api: Api, tmp_path: Path
) -> None:
    ours = [
        api.ask(lambda client, prompt=prompt: generate(client, prompt, NUM_TOKENS))
        for prompt in PROMPTS
    ]
    lines = [completion(prompt, prompt, max_tokens=NUM_TOKENS, temperature=0) for prompt in PROMPTS]
    options = ("--model", str(MODEL_FOLDER), "--dtype", "float32", "--device", "cpu")
    done = run_batch(tmp_path, lines, *options)
    assert done.exit_code == 0, done.stderr
    assert [done.body(prompt)["choices"][0]["text"] for prompt in PROMPTS] == ours


def test_stages_hold_only_their_layers(demo: Deployment) -> None:
    for pod in demo.pods("stage"):
        log = kubectl("logs", pod["metadata"]["name"], "--container", "fetch")
        entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert entries[-1]["event"] in ("fetched", "already_fetched"), log
        fetched = [one for one in entries if one["event"] == "fetching"]
        assert fetched or entries[-1]["event"] == "already_fetched", log
        assert all(one["bytes"] < one["size"] for one in fetched)


def test_the_chart_has_a_token_generated(demo: Deployment) -> None:
    values = (f"--set=test.deployment={NAME}", f"--set=test.namespace={NAMESPACE}")
    chart = str(ROOT / "charts" / "glinthawk")
    helm("upgrade", RELEASE, chart, "--reset-then-reuse-values", *values)
    helm("test", RELEASE, "--timeout", f"{WAIT_S:g}s")


def test_a_workers_pod_that_is_deleted_is_replaced_and_text_goes_on(
    demo: Deployment, api: Api
) -> None:
    before = {pod["metadata"]["name"] for pod in demo.pods("attention")}
    kubectl("delete", "pod", "--wait=false", *before)
    wait_until(
        lambda: not before & {pod["metadata"]["name"] for pod in demo.pods("attention")},
        "another worker in its place",
    )
    demo.await_settled()
    assert api.ask(generate)
