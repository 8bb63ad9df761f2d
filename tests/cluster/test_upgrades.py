"""Another release and other settings reach the pods under a batch; a bad one touches nothing.

The next release is the same code under another tag, which tests/cluster/bring_up.sh pushes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from cluster.api import Api, generate
from cluster.live import (
    OPERATOR,
    RELEASE,
    ROOT,
    SYSTEM,
    Deployment,
    helm,
    kubectl,
    read,
    wait_until,
)
from cluster.work import Lines, work_goes_on
from glinthawk.bench.tally import Answer, Tally

CHART = str(ROOT / "charts" / "glinthawk")
COMPONENTS = ("gateway", "stage", "attention")
UPGRADED_S = 300.0
ROUND = 100
"""Lines of a batch that is given again and again: a short one, for its end is waited for."""


def upgrade(*values: str) -> None:
    """Upgrade the release without waiting for its pods."""
    settings = [f"--set={value}" for value in values]
    helm("upgrade", RELEASE, CHART, "--reset-then-reuse-values", *settings)


def tag() -> str:
    """Return the tag of the release that runs."""
    values = json.loads(helm("get", "values", RELEASE, "--output", "json"))
    return str(values["image"]["tag"])


def images(demo: Deployment) -> set[str]:
    """Return the images' names of all pods, without what stands before them."""
    pods = [pod for one in COMPONENTS for pod in demo.pods(one)]
    return {pod["spec"]["containers"][0]["image"].rpartition("/")[2] for pod in pods}


def uids(demo: Deployment) -> dict[str, set[str]]:
    """Return the pods that there are, by component."""
    return {one: {pod["metadata"]["uid"] for pod in demo.pods(one)} for one in COMPONENTS}


def templates(demo: Deployment) -> set[str]:
    """Return the templates of the attention workers' pods."""
    return {pod["metadata"]["labels"]["pod-template-hash"] for pod in demo.pods("attention")}


@pytest.fixture
def release(demo: Deployment) -> Iterator[str]:
    """Yield the revision of the release; afterwards it is that one again."""
    revision = json.loads(helm("status", RELEASE, "--output", "json"))["version"]
    yield str(revision)
    if json.loads(helm("status", RELEASE, "--output", "json"))["version"] != revision:
        helm("rollback", RELEASE, str(revision))
    kubectl("rollout", "status", f"deployment/{OPERATOR}", "--timeout=120s", namespace=SYSTEM)
    demo.await_settled(UPGRADED_S)


def test_the_next_release_replaces_every_pod_under_a_batch_and_can_be_taken_back(
    demo: Deployment, release: str, lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    before, old = tag(), images(demo)
    new = {image.replace(before, f"{before}-next") for image in old}
    with work_goes_on(demo, lines[:ROUND], here, label) as rounds:
        upgrade(f"image.tag={before}-next")
        print(f"upgraded after {await_images(demo, new):.0f} s")
        helm("rollback", RELEASE, release)
        print(f"rolled back after {await_images(demo, old):.0f} s")
    assert rounds.tally == Tally()
    checks = read("pods", "--selector", "app.kubernetes.io/component=check")
    assert not checks


def await_images(demo: Deployment, wanted: set[str]) -> float:
    """Wait until every pod is of these images, and all is well; return the seconds."""
    took_s = wait_until(lambda: images(demo) == wanted, f"pods of {wanted}", UPGRADED_S)
    return took_s + demo.await_settled(UPGRADED_S)


def test_an_image_that_is_missing_leaves_the_old_generation_serving_and_says_so(
    demo: Deployment, release: str, api: Api
) -> None:
    before = uids(demo)
    upgrade("images.stage=glinthawk-missing")
    wait_until(lambda: demo.condition("Degraded").reason == "ImageCheckFailed", "it says so")
    assert f"glinthawk-missing:{tag()}" in demo.condition("Degraded").message
    assert "the old generation serves" in demo.condition("Degraded").message
    assert demo.condition("Ready").status == "True"
    assert demo.condition("Progressing").status == "False"
    assert api.ask(generate)
    assert uids(demo) == before
    helm("rollback", RELEASE, release)
    demo.await_settled()
    assert uids(demo) == before


def test_an_operator_that_is_missing_leaves_the_one_before_it(
    demo: Deployment, release: str, api: Api
) -> None:
    before = uids(demo)
    upgrade("image.tag=missing")
    wait_until(lambda: "ImagePullBackOff" in json.dumps(operators()), "its image is missed")
    assert any(is_running(pod) for pod in operators())
    demo.apply({"logLevel": "debug"})
    demo.await_settled(UPGRADED_S)
    assert not [one for one in images(demo) if one.endswith(":missing")]
    assert api.ask(generate)
    assert all(not uids(demo)[one] & before[one] for one in COMPONENTS)


def operators() -> list[Any]:
    label = f"app.kubernetes.io/instance={RELEASE}"
    return list(read("pods", "--selector", label, namespace=SYSTEM))


def is_running(pod: Mapping[str, Any]) -> bool:
    return bool(pod["status"].get("containerStatuses", [{}])[0].get("ready"))


def test_other_settings_of_the_model_replace_only_the_pods_that_have_them(
    demo: Deployment, lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    before, template = uids(demo), templates(demo)
    with work_goes_on(demo, lines[:ROUND], here, label) as rounds:
        demo.apply({"model": {"maxSequenceLength": 1024}})
        wait_until(lambda: not uids(demo)["gateway"] & before["gateway"], "another gateway")
        demo.await_settled(UPGRADED_S)
    assert rounds.tally == Tally()
    assert uids(demo)["stage"] == before["stage"]
    # The work may have asked for more workers meanwhile, which are pods of the same template.
    assert uids(demo)["attention"] >= before["attention"]
    assert templates(demo) == template
