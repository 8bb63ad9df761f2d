"""Who has how much open."""

from contextlib import ExitStack

import pytest

from glinthawk.config import GatewayConfig
from glinthawk.errors import CapacityExceeded, InvalidRequest
from glinthawk.gateway.api.accounts import Accounts
from glinthawk.gateway.api.services import ApiLimits


def test_limits_are_those_of_the_configuration() -> None:
    names = ("max_body_bytes", "max_file_bytes", "max_key_requests", "max_key_tokens")
    fields = {name: number for number, name in enumerate((*names, "max_key_batches"), start=1)}
    assert ApiLimits.of(GatewayConfig(**fields)) == ApiLimits(1, 2, 3, 4, 5)


@pytest.fixture
def accounts() -> Accounts:
    return Accounts(ApiLimits(1, 1, max_key_requests=2, max_key_tokens=100, max_key_batches=9))


def test_a_key_may_open_so_many_requests_and_no_more(accounts: Accounts) -> None:
    with ExitStack() as stack:
        stack.enter_context(accounts.open("alice", 1))
        stack.enter_context(accounts.open("alice", 1))
        with pytest.raises(CapacityExceeded, match="2 requests of key 'alice'"):
            accounts.check("alice")
        with pytest.raises(CapacityExceeded):
            stack.enter_context(accounts.open("alice", 1))
        stack.enter_context(accounts.open("bob", 1))


def test_tokens_count_while_a_request_is_open(accounts: Accounts) -> None:
    with ExitStack() as stack:
        stack.enter_context(accounts.open(None, 60))
        with pytest.raises(CapacityExceeded, match="60 tokens of all callers"):
            stack.enter_context(accounts.open(None, 41))
        stack.enter_context(accounts.open(None, 40))
    with accounts.open(None, 100):
        pass


def test_a_request_that_never_fits_is_no_matter_of_time(accounts: Accounts) -> None:
    with pytest.raises(InvalidRequest, match="101 tokens") as caught, accounts.open("a", 101):
        pass
    assert caught.value.param == "max_tokens"


def test_what_fails_is_not_counted_any_more(accounts: Accounts) -> None:
    for _ in range(5):
        with pytest.raises(ValueError, match="broken"), accounts.open("a", 100):
            raise ValueError("broken")
    accounts.check("a")
