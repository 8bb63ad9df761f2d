"""What the operator says of a spec that passes the schema and cannot work, on a real API server:
in a condition and an Event, with the numbers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import run_process
from cluster.kubelets import RAN, make_node
from cluster.operator_process import ROOT, Plane
from cluster.world import World, open_world, sample, wait_until

STAGE_MEMORY = "100MiB"
CLAIM = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
VOLUMES = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {
        "name": "anywhere",
        "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
    },
    "provisioner": "example.com/anywhere",
    "volumeBindingMode": "WaitForFirstConsumer",
}


def await_condition(world: World, kind: str, reason: str) -> str:
    """Wait for a reason, which an Event must give too, and return the message."""
    wait_until(lambda: world.condition(kind)[1] == reason, f"{kind} for {reason}")
    message = world.condition(kind)[2]
    wait_until(lambda: bool(world.events(reason)), f"an Event {reason}")
    assert any(note.startswith(f"{kind} is ") for note in world.events(reason))
    return message


def test_a_stage_that_does_not_fit_shows_the_calculation_of_the_loader(world: World) -> None:
    """The message is what the stage's own process says, as a kubelet passes it on."""
    command = ["stage", "--model", "smollm2-135m", "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run(
        [sys.executable, "-m", "glinthawk", *command, "--device-memory", STAGE_MEMORY],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "services")},
    )
    assert done.returncode, done.stdout
    message = done.stderr[-2048:]
    ended = {"exitCode": done.returncode, "reason": "Error", "message": message}
    again = {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}
    container = {
        "name": "stage",
        "image": "stage",
        "imageID": "stage",
        "ready": False,
        "restartCount": 1,
        "state": {"waiting": again},
        "lastState": {"terminated": {**ended, "startedAt": RAN, "finishedAt": RAN}},
    }
    world.fleet.troubles["stage"] = {"containerStatuses": [container]}
    world.operator.start()
    world.apply(sample())
    said = await_condition(world, "Degraded", "CrashLoopBackOff")
    for part in ("GiB weights", "runtime =", "device_memory is 0.10 GiB"):
        assert part in said, said
    assert world.condition("Ready")[:2] == ("False", "StagesMissing")
    assert "GiB weights" in world.condition("Ready")[2]
    assert any("GiB weights" in note for note in world.events("CrashLoopBackOff"))


def test_what_the_spec_names_and_is_not_there_is_said_until_it_is(world: World) -> None:
    manifest = sample()
    spec = manifest["spec"]
    spec["model"]["source"] = "pvc://weights/smol"
    spec["gpuTier"] |= {"runtimeClassName": "gvisor", "priorityClassName": "batch"}
    spec["gateway"]["apiKeysSecret"] = "keys"
    world.operator.start()
    world.apply(manifest)
    said = await_condition(world, "Degraded", "ReferenceMissing")
    for what in (
        "model.source names the PersistentVolumeClaim weights",
        "gpuTier.runtimeClassName names the RuntimeClass gvisor",
        "gpuTier.priorityClassName names the PriorityClass batch",
        "gateway.apiKeysSecret names the Secret keys",
    ):
        assert what in said, said
    assert world.condition("Ready")[0] == "False"
    objects: list[dict[str, Any]] = [
        {"kind": "Secret", "apiVersion": "v1", "stringData": {"wrong": "x"}},
        {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "spec": CLAIM},
        {"kind": "RuntimeClass", "apiVersion": "node.k8s.io/v1", "handler": "runsc"},
        {"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "value": 1000},
    ]
    names = ("keys", "weights", "gvisor", "batch")
    try:
        for one, name in zip(objects, names, strict=True):
            world.apply({**one, "metadata": {"name": name}})
        wait_until(
            lambda: "lacks the key 'keys'" in world.condition("Degraded")[2], "the key is missed"
        )
        world.plane.do("delete", "secret", "keys")
        world.plane.do("create", "secret", "generic", "keys", "--from-literal=keys=one")
        world.await_ready()
    finally:
        for one, name in zip(objects, names, strict=True):
            world.plane.kubectl("delete", one["kind"].lower(), name, "--wait=false")


@pytest.fixture
def scheduled(plane: Plane, tmp_path: Path) -> Iterator[World]:
    """A world with the real scheduler, two small nodes, and volumes that go with any node."""
    binary = Path(os.environ["KUBEBUILDER_ASSETS"]) / "kube-scheduler"
    if not binary.exists():
        pytest.skip(f"there is no {binary}, which finds nodes")
    options = [f"--kubeconfig={plane.plane.kubeconfig}", "--leader-elect=false", "--secure-port=0"]
    with open_world(plane, tmp_path, waits_for_scheduler=True) as world, ExitStack() as stack:
        stack.enter_context(run_process([str(binary), *options], tmp_path / "scheduler.log"))
        world.apply(VOLUMES)
        stack.callback(world.plane.kubectl, "delete", "storageclass", "anywhere")
        for name in ("small-0", "small-1"):
            make_node(world.api, name, capacity={"cpu": "8", "memory": "4Gi", "pods": "110"})
        yield world


@pytest.mark.parametrize(
    ("device", "kv_memory", "said"),
    [
        ("auto", "1Gi", "0/2 nodes are available: 2 Insufficient nvidia.com/gpu"),
        ("cpu", "64Gi", "0/2 nodes are available: 2 Insufficient memory"),
    ],
)
def test_that_no_node_fits_is_said_with_the_scheduler_s_numbers(
    scheduled: World, device: str, kv_memory: str, said: str
) -> None:
    manifest = sample()
    manifest["spec"]["gpuTier"]["device"] = device
    manifest["spec"]["memoryTier"]["kvCache"]["memory"] = kv_memory
    scheduled.operator.start()
    scheduled.apply(manifest)
    assert said in await_condition(scheduled, "Degraded", "Unschedulable")
    assert any(said in note for note in scheduled.events("Unschedulable"))
    assert scheduled.condition("Ready")[0] == "False"
