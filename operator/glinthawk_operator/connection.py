"""How the API server is found: from within a pod, or by KUBECONFIG."""

from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from glinthawk_operator.errors import InvalidSettings


def connect(*, context: str | None = None) -> kubernetes_client.ApiClient:
    """Return a connection: that of the pod's service account, or of KUBECONFIG.

    Raises:
        InvalidSettings: there is neither.
    """
    configuration = kubernetes_client.Configuration()
    try:
        try:
            kubernetes_config.load_incluster_config(client_configuration=configuration)
        except kubernetes_config.ConfigException:
            kubernetes_config.load_kube_config(context=context, client_configuration=configuration)
    except (kubernetes_config.ConfigException, OSError) as error:
        raise InvalidSettings(
            f"no API server is known: {error}; run in a pod with a service account, or set "
            "KUBECONFIG"
        ) from error
    configuration.retries = False
    return kubernetes_client.ApiClient(configuration)
