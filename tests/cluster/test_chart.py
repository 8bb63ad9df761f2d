"""The chart's life against a real API server: install, an outdated definition, upgrade, uninstall.

No pod runs here; what they do is tried on a cluster (test_deployment).
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chart_runs import CHART, HELM, NO_HELM
from cluster.control_plane import ControlPlane

CRD = "crd/glinthawkdeployments.glinthawk.dev"
SCHEMA = "glinthawk.dev/schema"
NAMESPACE = "chart-test"
SAMPLE = ("--set", "sample.enabled=true")

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)


class Helm:
    """Helm, for one release in a namespace of its own."""

    def __init__(self, plane: ControlPlane, home: Path) -> None:
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(plane.kubeconfig),
            **{f"HELM_{kind}_HOME": str(home / kind) for kind in ("CACHE", "CONFIG", "DATA")},
        }

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        assert HELM is not None
        return subprocess.run(
            [HELM, command, "glinthawk", *arguments, "--namespace", NAMESPACE],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def do(self, command: str, *arguments: str) -> str:
        done = self.run(command, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def helm(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Helm]:
    if not control_plane.is_own:
        pytest.skip("a control plane of our own is needed: set KUBEBUILDER_ASSETS")
    helm = Helm(control_plane, tmp_path)
    yield helm
    helm.run("uninstall")


def names(plane: ControlPlane, kind: str) -> set[str]:
    items = plane.read(kind, "--namespace", NAMESPACE)["items"]
    return {one["metadata"]["name"] for one in items}


def test_a_release_from_its_first_install_to_its_end(
    control_plane: ControlPlane, helm: Helm
) -> None:
    plane = control_plane
    plane.kubectl("delete", CRD, "--ignore-not-found", "--timeout=60s")

    # The definition comes first, so that the sample is taken with the first install.
    shown = helm.do("install", str(CHART), "--create-namespace", *SAMPLE)
    assert "The sample, sample," in shown
    assert names(plane, "ghd") == {"sample"}
    assert names(plane, "deployment") == {"glinthawk-operator"}
    created = plane.read(CRD)["metadata"]["creationTimestamp"]

    # A definition of another release, such as an older one: nothing is touched, the way is said.
    plane.do("annotate", CRD, f"{SCHEMA}=older", "--overwrite")
    tagged = ("--reuse-values", "--set", "image.tag=next")
    refused = helm.run("upgrade", str(CHART), *tagged)
    assert refused.returncode != 0
    assert "has the schema older" in refused.stderr
    assert "kubectl apply --server-side --force-conflicts" in refused.stderr
    image = plane.read("deployment/glinthawk-operator", "--namespace", NAMESPACE)
    assert "next" not in str(image)
    helm.do("upgrade", str(CHART), *tagged, "--set", "crds.check=false")

    plane.do("apply", "--server-side", "--force-conflicts", "--filename", str(CHART / "crds"))
    helm.do("upgrade", str(CHART), *tagged, "--set", "sample.spec.memoryTier.kvCache.memory=1Gi")
    (sample,) = plane.read("ghd", "--namespace", NAMESPACE)["items"]
    assert sample["spec"]["memoryTier"]["kvCache"]["memory"] == "1Gi"

    helm.do("uninstall")
    assert not names(plane, "ghd") | names(plane, "deployment")
    assert plane.read(CRD)["metadata"]["creationTimestamp"] == created
    helm.do("install", str(CHART))


def test_no_release_is_installed_beside_an_outdated_definition(
    control_plane: ControlPlane, helm: Helm
) -> None:
    """Helm 3 leaves a definition that is there, and the chart refuses; Helm 4 brings its own."""
    plane = control_plane
    plane.do("apply", "--server-side", "--force-conflicts", "--filename", str(CHART / "crds"))
    wanted = plane.read(CRD)["metadata"]["annotations"][SCHEMA]
    plane.do("annotate", CRD, f"{SCHEMA}-")
    done = helm.run("install", str(CHART), "--create-namespace")
    found = plane.read(CRD)["metadata"]["annotations"].get(SCHEMA)
    assert found == wanted if done.returncode == 0 else "has the schema none" in done.stderr
