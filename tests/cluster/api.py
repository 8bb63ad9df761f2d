"""The API of a deployment on a running cluster, as a client on this machine sees it."""

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import TypeVar

import openai

from cluster.live import MODEL, WAIT_S, CommandFailed, Deployment
from glinthawk.bench.fleet import find_ports
from glinthawk_operator.manifests.names import child_name

AWAY_S = 180.0
"""How long a gateway may be away: its node's loss, or its pod's start on a machine with work."""

Found = TypeVar("Found")


class Api:
    """The API of a deployment, through a port that kubectl forwards, made anew when it breaks."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._forward: subprocess.Popen[bytes] | None = None
        self._client: openai.OpenAI | None = None

    def ask(self, call: Callable[[openai.OpenAI], Found], timeout_s: float = AWAY_S) -> Found:
        """Return what a call returns; while the gateway is away it is made again.

        Raises:
            openai.APIError: it was away for too long, or refused the call.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if self._client is None:
                    self._client = self._connect()
                return call(self._client)
            except (openai.APIConnectionError, openai.InternalServerError, CommandFailed):
                self.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def close(self) -> None:
        """End the forwarding."""
        if self._forward is not None:
            self._forward.kill()
            self._forward.wait()
        if self._client is not None:
            self._client.close()
        self._forward = self._client = None

    def _connect(self) -> openai.OpenAI:
        (port,) = find_ports(1)
        deployment = self._deployment
        service = f"service/{child_name(deployment.name)}"
        command = ["kubectl", "--namespace", deployment.namespace, "port-forward", service]
        self._forward = subprocess.Popen(
            [*command, f"{port}:8000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        health = f"http://127.0.0.1:{port}/health"
        deadline = time.monotonic() + 20
        while not _answers(health) and time.monotonic() < deadline and self._forward.poll() is None:
            time.sleep(0.2)
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1",
            api_key=deployment.api_key(),
            timeout=WAIT_S,
            max_retries=0,
        )


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        urllib.request.urlopen(url, timeout=5).close()
        return True
    return False


def generate(client: openai.OpenAI, prompt: str = "The hawk", num_tokens: int = 8) -> str:
    """Return a greedy text."""
    answer = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=num_tokens, temperature=0
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    return answer.choices[0].text
