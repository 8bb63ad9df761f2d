"""Who calls: the bearer key of a request, turned into a name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from glinthawk.errors import Unauthenticated
from glinthawk.gateway.api.services import KeyChecker


@dataclass(frozen=True)
class Caller:
    """Who makes a request. name: of the key; None where no keys are asked for."""

    name: str | None


Guard = Callable[..., Caller]
"""What a route depends on to know its caller."""


def build_guard(keys: KeyChecker | None) -> Guard:
    """Return the dependency that lets callers pass who present a valid key."""
    if keys is None:
        return _pass_everyone

    bearer = HTTPBearer(auto_error=False, description="An API key of this gateway.")

    def check_key(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    ) -> Caller:
        if credentials is None:
            raise Unauthenticated(
                "no API key was sent; send the header 'Authorization: Bearer KEY'"
            )
        name = keys.find(credentials.credentials)
        if name is None:
            raise Unauthenticated("the API key is not valid; it may be mistyped or revoked")
        return Caller(name)

    return check_key


def _pass_everyone() -> Caller:
    return Caller(None)
