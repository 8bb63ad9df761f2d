"""Helm, and what it renders of the chart.

Helm is looked for on the PATH, then beside the other binaries in KUBEBUILDER_ASSETS.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "glinthawk"
KUBERNETES = "1.34.0"
"""For which version the chart is rendered."""


def find_helm() -> str | None:
    """Return the binary, None if there is none."""
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    return shutil.which("helm") or shutil.which("helm", path=assets)


HELM = find_helm()
NO_HELM = "helm is neither on the PATH nor in KUBEBUILDER_ASSETS"


def run_helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm, whatever comes of it."""
    assert HELM is not None
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=120)


def render(*arguments: str, release: str = "test") -> list[dict[str, Any]]:
    """Return the objects that the chart makes under further options of `helm template`."""
    options = ["--namespace", "systems", "--kube-version", KUBERNETES]
    done = run_helm("template", release, str(CHART), *options, *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return those of a kind."""
    return [one for one in objects if one["kind"] == kind]
