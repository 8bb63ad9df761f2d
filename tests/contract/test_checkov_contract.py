"""What checkov finds in the chart, in the operator's manifests and in the Dockerfiles is waived by
name and for a reason, or is not there.

Needs checkov on the PATH, which has dependencies that bite ours, so it is not installed with the
tests: `pipx install checkov`.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_runs import HELM, NO_HELM, render
from factories_operator import make_context
from glinthawk_operator.manifests.build import desired
from glinthawk_operator.manifests.secrets import build_secrets

ROOT = Path(__file__).resolve().parents[2]
CHECKOV = shutil.which("checkov")
WAIVERS = {
    "chart": ROOT / "charts" / "glinthawk" / ".checkov.yaml",
    "operator": ROOT / "operator" / ".checkov.yaml",
    "images": ROOT / "services" / "images" / ".checkov.yaml",
}
TIMEOUT_S = 300


def find_failures(folder: Path, framework: str) -> dict[str, set[str]]:
    """Return the resources that fail, by check."""
    assert CHECKOV is not None
    # A file that it finds in the folder it scans or runs in would hide what is waived.
    settings = folder.parent / "all.yaml"
    settings.write_text(f"framework: [{framework}]\n", encoding="utf-8")
    command = [CHECKOV, "--config-file", str(settings), "--directory", str(folder)]
    command += ["--output", "json", "--compact", "--skip-download"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, cwd=folder
    )
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 0
    failures: dict[str, set[str]] = {}
    for one in report["results"]["failed_checks"]:
        failures.setdefault(one["check_id"], set()).add(one["resource"])
    return failures


def read_waivers(name: str) -> set[str]:
    content = yaml.safe_load(WAIVERS[name].read_text(encoding="utf-8"))
    return set(content["skip-check"])


def write_manifests(folder: Path, manifests: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    text = yaml.safe_dump_all(manifests, sort_keys=False)
    (folder / "all.yaml").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", WAIVERS)
def test_every_waiver_has_a_reason(name: str) -> None:
    lines = WAIVERS[name].read_text(encoding="utf-8").splitlines()
    listed = lines[lines.index("skip-check:") + 1 :]
    assert listed[0].startswith("  # ")
    assert all(re.fullmatch(r"  (# .{20,}|- CKV2?_[A-Z0-9]+_\d+)", line) for line in listed)


needs_checkov = pytest.mark.skipif(CHECKOV is None, reason="checkov is not on the PATH")


@needs_checkov
@pytest.mark.skipif(HELM is None, reason=NO_HELM)
def test_the_chart_fails_only_what_is_waived(tmp_path: Path) -> None:
    manifests = render("--set=monitoring.serviceMonitor=on", "--set=monitoring.prometheusRule=on")
    failures = find_failures(write_manifests(tmp_path / "chart", manifests), "kubernetes")
    assert set(failures) == read_waivers("chart"), failures


@needs_checkov
def test_the_operators_manifests_fail_only_what_is_waived(tmp_path: Path) -> None:
    context = make_context(gpuTier={"device": "cuda"})
    wanted = desired(context)
    manifests = [*wanted.supporting, *build_secrets(context, bytes)]
    for one in wanted.components:
        manifests += [one.config_map, one.workload, one.check]
    folder = write_manifests(tmp_path / "children", [dict(one) for one in manifests])
    failures = find_failures(folder, "kubernetes")
    assert set(failures) == read_waivers("operator"), failures


@needs_checkov
def test_the_dockerfiles_fail_only_what_is_waived(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for path in WAIVERS["images"].parent.glob("*.Dockerfile"):
        shutil.copy(path, folder)
    failures = find_failures(folder, "dockerfile")
    assert set(failures) == read_waivers("images"), failures
