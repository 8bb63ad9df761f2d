"""Which steps run, wait, or are dropped, while workers and the next stage come and go."""

from collections.abc import Iterator

import pytest

from glinthawk.errors import PeerUnavailable
from glinthawk.stage.routes import Fate, Routes
from glinthawk.stage.work import LinkLost, LinkUp, ViewChanged
from glinthawk.wire.messages import Member, Role
from unit.stage.connections import Link

W0 = Member(Role.ATTENTION, "w0", "a:1", epoch=3)
W1 = Member(Role.ATTENTION, "w1", "b:1", epoch=4)
NEXT = Member(Role.STAGE, "s1", "c:1", 2, 4, epoch=2)
GONE = PeerUnavailable("gone")


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link("peer")
    yield link
    link.close()


def view(epoch: int, *workers: Member, next_stage: Member | None = None) -> ViewChanged:
    return ViewChanged(epoch, workers, next_stage)


def later(member: Member, epoch: int) -> Member:
    return Member(member.role, member.name, member.address, epoch=epoch)


def test_a_step_waits_for_the_view_and_then_for_the_link(link: Link) -> None:
    routes = Routes()
    assert routes.judge("w0", 3) is Fate.HOLD
    routes.change(view(9, W0))
    assert routes.judge("w0", 3) is Fate.HOLD
    routes.link_up(LinkUp(W0, link.outbox))
    assert routes.judge("w0", 3) is Fate.RUN
    assert routes.outbox("w0") is link.outbox


def test_a_step_of_a_past_epoch_is_dropped_and_one_ahead_of_the_view_waits(link: Link) -> None:
    routes = Routes()
    routes.change(view(9, W0))
    routes.link_up(LinkUp(W0, link.outbox))
    assert routes.judge("w0", 2) is Fate.DROP
    assert routes.judge("w0", 12) is Fate.HOLD


def test_a_step_of_a_worker_that_left_is_dropped_and_of_one_to_come_waits() -> None:
    routes = Routes()
    routes.change(view(9, W0))
    assert routes.judge("w1", 4) is Fate.DROP
    assert routes.judge("w1", 10) is Fate.HOLD


def test_a_step_of_a_worker_that_cannot_be_reached_fails_with_the_reason() -> None:
    routes = Routes()
    routes.change(view(9, W0, W1))
    routes.link_lost(LinkLost(W0, GONE))
    assert routes.judge("w0", 3) is Fate.FAIL
    assert routes.failure("w0") is GONE
    assert routes.judge("w1", 4) is Fate.HOLD


def test_whoever_comes_and_goes_the_links_of_the_others_stay(link: Link) -> None:
    routes = Routes()
    assert routes.change(view(9, W0)) == frozenset()
    routes.link_up(LinkUp(W0, link.outbox))
    assert routes.change(view(12, W0, later(W1, 11))) == frozenset()
    assert routes.judge("w0", 3) is Fate.RUN
    assert routes.change(view(13, W0)) == {"w1"}
    assert routes.judge("w0", 3) is Fate.RUN


def test_a_later_epoch_voids_what_the_worker_held_and_its_link(link: Link) -> None:
    routes = Routes()
    routes.change(view(9, W0))
    routes.link_up(LinkUp(W0, link.outbox))
    assert routes.change(view(12, later(W0, 11))) == {"w0"}
    assert routes.judge("w0", 3) is Fate.DROP
    assert routes.judge("w0", 11) is Fate.HOLD


def test_a_link_that_broke_is_awaited_again_after_the_next_view(link: Link) -> None:
    routes = Routes()
    routes.change(view(9, W0))
    routes.link_lost(LinkLost(W0, GONE))
    routes.change(view(12, W0))
    assert routes.judge("w0", 3) is Fate.HOLD
    routes.link_up(LinkUp(W0, link.outbox))
    assert routes.judge("w0", 3) is Fate.RUN


def test_no_step_runs_before_the_next_stage_is_there(link: Link) -> None:
    routes = Routes()
    routes.change(view(9, W0, next_stage=NEXT))
    routes.link_up(LinkUp(W0, link.outbox))
    assert routes.judge("w0", 3) is Fate.HOLD
    assert routes.next_stage is None
    routes.link_up(LinkUp(NEXT, link.outbox))
    assert routes.judge("w0", 3) is Fate.RUN
    assert routes.next_stage is link.outbox
    assert not routes.is_cut_off


def test_a_lost_next_stage_cuts_off_until_a_view_lets_it_be_dialled_again(link: Link) -> None:
    routes = Routes()
    routes.change(view(9, W0, next_stage=NEXT))
    routes.link_up(LinkUp(NEXT, link.outbox))
    routes.link_lost(LinkLost(NEXT, GONE))
    assert routes.is_cut_off
    routes.change(view(12, W0, next_stage=NEXT))
    assert not routes.is_cut_off
