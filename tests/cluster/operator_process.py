"""The operator as a process, and a control plane to run it against."""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cluster.control_plane import ControlPlane, NoControlPlane, open_control_plane, run_process
from cluster.rights import NAMESPACE, give_rights

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0
STOP_S = 30.0
CONTROLLERS = ",".join(
    (
        *("deployment-controller", "replicaset-controller", "statefulset-controller"),
        *("garbage-collector-controller", "persistentvolumeclaim-protection-controller"),
    )
)


@dataclass(frozen=True)
class Plane:
    """A control plane of our own with the resource's definition.

    operator_kubeconfig: of the operator's account, which has the rights that the chart gives.
    """

    plane: ControlPlane
    operator_kubeconfig: Path


@contextmanager
def open_plane(folder: Path) -> Iterator[Plane]:
    """Yield a control plane of our own, with controllers that make pods and collect garbage.

    Raises:
        NoControlPlane: its binaries are not there.
    """
    with ExitStack() as stack:
        plane = stack.enter_context(open_control_plane(folder))
        if not plane.is_own:
            raise NoControlPlane("a control plane of our own is needed: set KUBEBUILDER_ASSETS")
        binary = Path(os.environ["KUBEBUILDER_ASSETS"]) / "kube-controller-manager"
        if not binary.exists():
            raise NoControlPlane(f"there is no {binary}, which makes the pods")
        command = [
            str(binary),
            f"--kubeconfig={plane.kubeconfig}",
            f"--controllers={CONTROLLERS}",
            "--leader-elect=false",
            "--secure-port=0",
            "--bind-address=127.0.0.1",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ]
        stack.enter_context(run_process(command, folder / "controllers.log"))
        plane.do("apply", "--server-side", "-f", str(ROOT / "crds"))
        wanted = "--for=condition=Established"
        plane.do("wait", wanted, "crd/glinthawkdeployments.glinthawk.dev", "--timeout=60s")
        yield Plane(plane, give_rights(plane, folder))


class Operator:
    """The operator's process, which can be killed and started again.

    Args:
        kubeconfig: of its account.
        control_url: of gateways, as its setting has it.
        log: file that its output is appended to.
        settings: further ones, by name.
    """

    def __init__(
        self,
        kubeconfig: Path,
        control_url: str,
        log: Path,
        *,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._log_path = log
        self._log = log.open("ab")
        self._started_at = 0
        chosen = {
            "control_url": control_url,
            "pod_namespace": NAMESPACE,
            "poll_seconds": "1",
            "lease_seconds": "3",
            "health_port": "0",
            "metrics_port": "0",
            "host": "127.0.0.1",
            **(settings or {}),
        }
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": str(ROOT / "operator"),
            **{f"GLINTHAWK_OPERATOR_{name.upper()}": value for name, value in chosen.items()},
        }
        self._process: subprocess.Popen[bytes] | None = None

    def use(self, kubeconfig: Path) -> None:
        """Take another account, or another way, from the next start on."""
        self._environment["KUBECONFIG"] = str(kubeconfig)

    def start(self) -> None:
        """Start it."""
        self._started_at = self._log_path.stat().st_size
        self._process = subprocess.Popen(
            [sys.executable, "-m", "glinthawk_operator"],
            env=self._environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it if it runs, and let go of the log."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def events(self, name: str) -> list[dict[str, object]]:
        """Return what it logged under an event's name since it was started."""
        with self._log_path.open("rb") as log:
            log.seek(self._started_at)
            lines = log.read().decode(errors="replace").splitlines()
        found = []
        for line in lines:
            try:
                document = json.loads(line)
            except ValueError:
                continue
            if isinstance(document, dict) and document.get("event") == name:
                found.append(document)
        return found

    def health(self) -> int:
        """Return the status code of /healthz."""
        request = f"http://127.0.0.1:{self._port('health_port')}/healthz"
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def scrape(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return its metrics: by name and label values, in the order of label names."""
        url = f"http://127.0.0.1:{self._port('metrics_port')}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        found: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(sample.labels[name] for name in sorted(sample.labels))
                found.setdefault(sample.name, {})[labels] = sample.value
        return found

    def _port(self, name: str) -> int:
        end = time.monotonic() + START_S
        while not (found := self.events("starting")):
            assert self.exit_code is None, f"it ended with code {self.exit_code}: {self._log_path}"
            assert time.monotonic() < end, f"it did not start in {START_S} s: {self._log_path}"
            time.sleep(0.2)
        return int(str(found[-1][name]))
