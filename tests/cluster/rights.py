"""The operator's rights, as the chart gives them: its service account, roles and bindings.

Rendered by helm where there is one; else made from the rule files that the chart's templates take
in, which say the same.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from chart_runs import CHART, HELM, run_helm
from cluster.audit import Right
from cluster.control_plane import ControlPlane

NAMESPACE = "glinthawk-system"
ACCOUNT = "glinthawk-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
TEMPLATES = ("templates/serviceaccount.yaml", "templates/rbac.yaml")


def render_rights(*settings: str) -> list[dict[str, Any]]:
    """Return the objects by which the chart gives the operator its rights.

    settings: of the chart, as --set has them; only helm knows them.
    """
    if HELM is None:
        assert not settings, "settings of the chart need helm on the PATH"
        return _build_rights()
    options = [part for one in settings for part in ("--set", one)]
    options += [part for one in TEMPLATES for part in ("--show-only", one)]
    done = run_helm("template", "glinthawk", str(CHART), "--namespace", NAMESPACE, *options)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def list_rights(objects: Iterable[dict[str, Any]]) -> set[Right]:
    """Return what the roles among some objects grant."""
    return {
        Right(group, resource, verb)
        for one in objects
        for rule in one.get("rules") or ()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def give_rights(plane: ControlPlane, folder: Path, *settings: str) -> Path:
    """Give a control plane the operator's account with its rights; return its kubeconfig.

    settings: see `render_rights`.
    """
    if plane.kubectl("get", "namespace", NAMESPACE).returncode:
        plane.do("create", "namespace", NAMESPACE)
    items = {"apiVersion": "v1", "kind": "List", "items": render_rights(*settings)}
    plane.do("apply", "-f", "-", manifest=items)
    token = plane.do("create", "token", ACCOUNT, "-n", NAMESPACE, "--duration=24h").strip()
    document = json.loads(plane.kubeconfig.read_text(encoding="utf-8"))
    document["users"][0]["user"] = {"token": token}
    path = folder / "operator-kubeconfig"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _build_rights() -> list[dict[str, Any]]:
    account = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(ACCOUNT)}
    ]
    files = ("cluster", "everywhere", "resources", "lease")
    for file, scope in zip(files, ("Cluster", "Cluster", "Cluster", ""), strict=True):
        rules = yaml.safe_load((CHART / "rbac" / f"{file}.yaml").read_text(encoding="utf-8"))
        metadata = _metadata(f"{ACCOUNT}-{file}", is_namespaced=not scope)
        role = {"kind": f"{scope}Role", "name": metadata["name"]}
        binding = {
            "roleRef": {**role, "apiGroup": "rbac.authorization.k8s.io"},
            "subjects": [account],
        }
        for kind, content in (("Role", {"rules": rules}), ("RoleBinding", binding)):
            objects.append(
                {
                    "apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": f"{scope}{kind}",
                    "metadata": metadata,
                    **content,
                }
            )
    return objects


def _metadata(name: str, *, is_namespaced: bool = True) -> dict[str, str]:
    return {"name": name, "namespace": NAMESPACE} if is_namespaced else {"name": name}
