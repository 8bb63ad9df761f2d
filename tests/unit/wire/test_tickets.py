import pytest

from glinthawk.errors import CapacityExceeded, Unauthenticated
from glinthawk.wire.tickets import TICKET_BYTES, Hello, TicketBook

HELLO = Hello("stage-0", "stage", 4, "tcp")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_is_good_once() -> None:
    book = TicketBook(Clock())
    ticket = book.issue(HELLO)
    assert len(ticket) == TICKET_BYTES
    assert book.redeem(ticket, "tcp") == HELLO
    with pytest.raises(Unauthenticated, match="used"):
        book.redeem(ticket, "tcp")


def test_a_ticket_expires() -> None:
    clock = Clock()
    book = TicketBook(clock, lifetime_s=5.0)
    ticket = book.issue(HELLO)
    clock.now += 5.0
    with pytest.raises(Unauthenticated, match="expired"):
        book.redeem(ticket, "tcp")


def test_a_ticket_is_for_one_transport_and_void_after_a_wrong_try() -> None:
    book = TicketBook(Clock())
    ticket = book.issue(HELLO)
    for transport in ("grpc", "tcp"):
        with pytest.raises(Unauthenticated):
            book.redeem(ticket, transport)


@pytest.mark.parametrize("ticket", [b"", bytes(TICKET_BYTES), b"x" * 500])
def test_a_guess_is_refused(ticket: bytes) -> None:
    book = TicketBook(Clock())
    book.issue(HELLO)
    with pytest.raises(Unauthenticated):
        book.redeem(ticket, "tcp")


def test_unused_tickets_are_limited_until_they_expire() -> None:
    clock = Clock()
    book = TicketBook(clock, lifetime_s=5.0, max_outstanding=3)
    for _ in range(3):
        book.issue(HELLO)
    with pytest.raises(CapacityExceeded, match="3"):
        book.issue(HELLO)
    clock.now += 6.0
    assert book.redeem(book.issue(HELLO), "tcp") == HELLO
