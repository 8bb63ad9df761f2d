"""desired(spec): all objects that a resource wants, as they are applied.

The same resource gives the same manifests; nothing here asks the cluster anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glinthawk_operator.manifests.applied import stamp
from glinthawk_operator.manifests.attention import build_attention
from glinthawk_operator.manifests.check import build_check
from glinthawk_operator.manifests.config import build_config_map
from glinthawk_operator.manifests.context import Context, Manifest
from glinthawk_operator.manifests.gateway import build_gateway
from glinthawk_operator.manifests.names import (
    ATTENTION,
    COMPONENTS,
    GATEWAY,
    STAGE,
    TEMPLATE_ANNOTATION,
)
from glinthawk_operator.manifests.policies import (
    build_disruption_budgets,
    build_monitors,
    build_network_policies,
)
from glinthawk_operator.manifests.services import build_services
from glinthawk_operator.manifests.stages import build_stages


@dataclass(frozen=True)
class DesiredComponent:
    """What makes up a component: its settings, its workload, and the pod that checks its image."""

    component: str
    config_map: Manifest
    workload: Manifest
    image: str
    check: Manifest

    @property
    def template_hash(self) -> str:
        """Return what pods of this template carry."""
        return template_hash(self.workload["spec"]["template"])


@dataclass(frozen=True)
class Desired:
    """All that a resource wants but its Secrets.

    supporting: what may be applied at any time. components: what makes pods.
    """

    supporting: tuple[Manifest, ...]
    components: tuple[DesiredComponent, ...]

    def component(self, name: str) -> DesiredComponent:
        """Return one of the components."""
        return next(one for one in self.components if one.component == name)


def desired(context: Context) -> Desired:
    """Return what the resource of a context wants; every manifest carries its hash."""
    workloads = {
        GATEWAY: build_gateway(context),
        STAGE: build_stages(context),
        ATTENTION: build_attention(context),
    }
    supporting = [
        *(_service_account(context, one) for one in COMPONENTS),
        *build_services(context),
        *build_disruption_budgets(context),
        *build_network_policies(context),
        *build_monitors(context),
    ]
    return Desired(
        tuple(map(stamp, supporting)),
        tuple(
            DesiredComponent(
                one,
                stamp(build_config_map(context, one)),
                stamp(workloads[one]),
                context.image(one),
                stamp(build_check(context, one)),
            )
            for one in COMPONENTS
        ),
    )


def template_hash(template: Mapping[str, Any]) -> str:
    """Return the hash that a pod template, or a pod, carries; empty if it is none of ours."""
    annotations = template.get("metadata", {}).get("annotations", {})
    return str(annotations.get(TEMPLATE_ANNOTATION, ""))


def _service_account(context: Context, component: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": context.metadata(context.child(component), component),
        "automountServiceAccountToken": False,
    }
