"""A real API server for tests: one of our own in a temporary folder, or a cluster that is there.

Our own needs `etcd` and `kube-apiserver` in the folder that KUBEBUILDER_ASSETS names, as the tools
of controller authors lay them out; it is made and thrown away. Without them KUBECONFIG is taken,
if the cluster behind it answers; what a test makes there it must take away again.
"""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY_S = 180.0
"""An API server of its own is there in 5 seconds; more is a machine with other work."""

STOP_S = 30.0
ATTEMPTS = 3
"""A port that was free may be taken before it is listened on."""

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class NoControlPlane(Exception):
    """There is none, and this says why, for the reason of a skip."""


@dataclass(frozen=True)
class ControlPlane:
    """An API server, and kubectl to speak to it.

    is_own: made for these tests alone. audit_log: where it writes who asked for what, if it is.
    """

    kubectl_path: str
    kubeconfig: Path
    is_own: bool
    audit_log: Path | None = None

    def kubectl(self, *arguments: str, manifest: Any = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl; a manifest goes to its standard input, as JSON."""
        return subprocess.run(
            [self.kubectl_path, "--kubeconfig", str(self.kubeconfig), *arguments],
            input=None if manifest is None else json.dumps(manifest),
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )

    def read(self, *arguments: str) -> Any:
        """Return what `kubectl get` finds, as a document; it must be there."""
        done = self.kubectl("get", *arguments, "--output", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def do(self, *arguments: str, manifest: Any = None) -> str:
        """Run kubectl, which must succeed, and return its output."""
        done = self.kubectl(*arguments, manifest=manifest)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def open_control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Yield an API server of our own in `folder`, else the one of KUBECONFIG.

    Raises:
        NoControlPlane: there is neither.
    """
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and all((Path(assets) / name).exists() for name in ("etcd", "kube-apiserver")):
        with _start(Path(assets), folder) as plane:
            yield plane
        return
    given = os.environ.get("KUBECONFIG")
    kubectl = shutil.which("kubectl")
    if not given or not Path(given).exists():
        raise NoControlPlane(
            "no control plane: KUBEBUILDER_ASSETS names no folder with etcd and kube-apiserver, "
            "and KUBECONFIG no file"
        )
    if kubectl is None:
        raise NoControlPlane("KUBECONFIG is set, and there is no kubectl on the PATH to use it")
    plane = ControlPlane(kubectl, Path(given), is_own=False)
    answer = plane.kubectl("get", "--raw", "/readyz", "--request-timeout=10s")
    if answer.returncode:
        raise NoControlPlane(f"the cluster of KUBECONFIG does not answer: {answer.stderr.strip()}")
    yield plane


@contextmanager
def _start(assets: Path, folder: Path) -> Iterator[ControlPlane]:
    """Start etcd and an API server in `folder`; they end with the block."""
    kubectl = assets / "kubectl"
    found = str(kubectl) if kubectl.exists() else shutil.which("kubectl")
    if found is None:
        raise NoControlPlane(f"there is no kubectl in {assets} or on the PATH")
    if shutil.which("openssl") is None:
        raise NoControlPlane("there is no openssl on the PATH to make a certificate with")
    certificate, key = _make_certificate(folder)
    for attempt in range(1, ATTEMPTS + 1):
        with ExitStack() as processes:
            home = folder / str(attempt)
            home.mkdir()
            plane = _launch(processes, assets, home, (certificate, key), found)
            if plane is not None:
                yield plane
                return
    raise AssertionError(f"no API server came up in {ATTEMPTS} attempts; logs are in {folder}")


def _launch(
    processes: ExitStack, assets: Path, home: Path, pair: tuple[Path, Path], kubectl: str
) -> ControlPlane | None:
    """Start both in `home`; None if one of them ended before the API server was ready."""
    certificate, key = pair
    store, peers, api = (_free_port() for _ in range(3))
    token = os.urandom(16).hex()
    (home / "tokens.csv").write_text(f'{token},test,test,"system:masters"\n', encoding="utf-8")
    kubeconfig, audit_log = home / "kubeconfig", home / "audit.jsonl"
    kubeconfig.write_text(json.dumps(_kubeconfig(api, certificate, token)), encoding="utf-8")
    (home / "audit.yaml").write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")
    commands = {
        "etcd": [
            f"--data-dir={home / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls=http://127.0.0.1:{store}",
            f"--advertise-client-urls=http://127.0.0.1:{store}",
            f"--listen-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peers}",
            f"--initial-cluster=default=http://127.0.0.1:{peers}",
        ],
        "kube-apiserver": [
            f"--etcd-servers=http://127.0.0.1:{store}",
            "--bind-address=127.0.0.1",
            f"--secure-port={api}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--token-auth-file={home / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={certificate}",
            f"--service-account-signing-key-file={key}",
            "--service-cluster-ip-range=10.0.0.0/16",
            f"--audit-policy-file={home / 'audit.yaml'}",
            f"--audit-log-path={audit_log}",
        ],
    }
    started = [
        processes.enter_context(run_process([str(assets / name), *options], home / f"{name}.log"))
        for name, options in commands.items()
    ]
    plane = ControlPlane(kubectl, kubeconfig, is_own=True, audit_log=audit_log)
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in started):
            return None
        if plane.kubectl("get", "namespace", "default").returncode == 0:
            return plane
        time.sleep(0.5)
    return None


@contextmanager
def run_process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the end of the block; its output goes to a file."""
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _make_certificate(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1, its own authority, and its key."""
    certificate, key = folder / "server.crt", folder / "server.key"
    options = ["-x509", "-nodes", "-days", "2"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = ["openssl", "req", *options, *kind, *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def _kubeconfig(port: int, certificate: Path, token: str) -> dict[str, Any]:
    server = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority": str(certificate),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
