"""What `helm test` runs in its pod, run against a live gateway that asks for keys."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from chart_runs import HELM, NO_HELM, of_kind, render
from factories_models import make_tiny_model
from glinthawk.bench.fleet import FleetSettings, find_ports, fleet_of

KEY = "gh-secret-of-this-test"

pytestmark = pytest.mark.skipif(HELM is None, reason=NO_HELM)


def run_test(url: str, key_file: Path, timeout_s: int) -> subprocess.CompletedProcess[str]:
    """Run the container of the test's pod, as it is rendered, outside of a pod."""
    (pod,) = of_kind(
        render(f"--set=test.url={url}", f"--set=test.timeoutSeconds={timeout_s}"), "Pod"
    )
    (container,) = pod["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    assert (
        Path(environment["KEY_FILE"]).parent.as_posix() == container["volumeMounts"][0]["mountPath"]
    )
    python, *options = container["command"]
    assert python == "python"
    return subprocess.run(
        [sys.executable, *options, *container["args"]],
        env={**environment, "KEY_FILE": str(key_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_succeeds_with_one_token_and_fails_without_a_key_or_a_gateway(tmp_path: Path) -> None:
    key_file, keys = tmp_path / "key", tmp_path / "keys"
    key_file.write_text(KEY, encoding="utf-8")
    keys.write_text(f"default:{hashlib.sha256(KEY.encode()).hexdigest()}\n", encoding="utf-8")
    model = str(make_tiny_model("llama3", tmp_path / "llama3"))
    asks = ("--keys", "on", "--keys-file", str(keys))
    with fleet_of(
        FleetSettings(model, tmp_path / "fleet", 1, 1, "8MiB", gateway_options=asks)
    ) as fleet:
        url = f"http://127.0.0.1:{fleet.http_port}"
        done = run_test(url, key_file, 60)
        assert done.returncode == 0, done.stderr
        assert "generated 1 token" in done.stdout
        refused = run_test(url, tmp_path / "absent", 60)
        assert refused.returncode != 0
        assert "401" in refused.stderr
    away = run_test(f"http://127.0.0.1:{find_ports(1)[0]}", key_file, 1)
    assert away.returncode != 0
    assert "did not generate a token" in away.stderr
