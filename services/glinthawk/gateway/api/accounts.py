"""How much a caller may have open at a time: requests, and tokens of prompts and outputs.

One account for each key, and one for all where no keys are asked for. Any thread may use it: gRPC
and HTTP have one between them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from glinthawk.errors import CapacityExceeded, InvalidRequest
from glinthawk.gateway.api.services import ApiLimits
from glinthawk.gateway.requests import ParsedRequest


def count_tokens(request: ParsedRequest) -> int:
    """Return the tokens that a request may come to, prompts and outputs."""
    return request.num_prompt_tokens + sum(choice.max_new_tokens for choice in request.choices)


@dataclass
class _Account:
    num_requests: int = 0
    num_tokens: int = 0


class Accounts:
    """What each caller has open. name: of the key; None is the account of all without keys."""

    def __init__(self, limits: ApiLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._accounts: dict[str | None, _Account] = {}

    def check(self, name: str | None) -> None:
        """Refuse a caller who may not open one more request, before work is spent on it.

        Raises:
            CapacityExceeded: as many are open as may be.
        """
        account = self._accounts.get(name)
        if account is not None and account.num_requests >= self._limits.max_key_requests:
            raise CapacityExceeded(
                f"{account.num_requests} requests of {_describe(name)} are open, the most there "
                "may be; wait until one has ended"
            )

    @contextmanager
    def open(self, name: str | None, num_tokens: int) -> Iterator[None]:
        """Count a request, with all tokens that it may come to, while the block runs.

        Raises:
            InvalidRequest: it alone is over the limit.
            CapacityExceeded: it is over the limit together with what is open.
        """
        limit = self._limits.max_key_tokens
        if num_tokens > limit:
            raise InvalidRequest(
                f"prompts and outputs of this request may come to {num_tokens} tokens; "
                f"{_describe(name)} may have {limit} open. Lower max_tokens or n",
                param="max_tokens",
            )
        with self._lock:
            self._charge(name, num_tokens)
        try:
            yield
        finally:
            with self._lock:
                self._release(name, num_tokens)

    def _charge(self, name: str | None, num_tokens: int) -> None:
        self.check(name)
        account = self._accounts.get(name) or _Account()
        limit = self._limits.max_key_tokens
        if account.num_tokens + num_tokens > limit:
            raise CapacityExceeded(
                f"{account.num_tokens} tokens of {_describe(name)} are open and {num_tokens} "
                f"would come; {limit} may be. Wait until a request has ended"
            )
        account.num_requests += 1
        account.num_tokens += num_tokens
        self._accounts[name] = account

    def _release(self, name: str | None, num_tokens: int) -> None:
        account = self._accounts[name]
        account.num_requests -= 1
        account.num_tokens -= num_tokens
        if not account.num_requests:
            del self._accounts[name]


def _describe(name: str | None) -> str:
    return "all callers" if name is None else f"key {name!r}"
