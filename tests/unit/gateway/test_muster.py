"""What happened to members since it was last told."""

import threading

import pytest

from glinthawk.errors import PeerUnavailable, StoreUnavailable
from glinthawk.gateway.epochs import LEAST, Epochs
from glinthawk.gateway.muster import Muster
from glinthawk.gateway.roster import Roster
from glinthawk.wire.messages import Refused, Registration
from unit.gateway.members import MODEL, WAIT_S, stage_offer, worker_offer

LATER = 1e12
"""A time at which every reset is due."""


class Counter:
    """A counter of epochs, on a store that may be away, or that writes only when it is let."""

    def __init__(self) -> None:
        self.epoch = 0
        self.is_away = False
        self.is_asked = threading.Event()
        self.may_write = threading.Event()
        self.may_write.set()

    def __call__(self, count: int) -> int:
        self.is_asked.set()
        assert self.may_write.wait(WAIT_S)
        if self.is_away:
            raise StoreUnavailable("the disk is full")
        self.epoch += count
        return self.epoch - count + 1


def use_up(epochs: Epochs) -> None:
    """Have the next one who needs an epoch ask the counter."""
    while epochs.num_left >= LEAST:
        epochs.take()


def make_muster(epochs: Epochs) -> Muster:
    roster = Roster(MODEL, "digest", num_stages=1, num_workers=0, kv_dtype=None)
    muster = Muster(roster, epochs)
    muster.admit(Registration("s0", "1", "s0:1", stage_offer(0, 4)))
    muster.admit(Registration("w0", "1", "w0:1", worker_offer()))
    return muster


def test_changes_are_those_against_what_was_told() -> None:
    muster = make_muster(Epochs(Counter()))
    changes = muster.take_changes((), {"w0": 1, "w9": 1}, 0.0)
    assert set(changes.lost) == {"w0", "w9"}
    assert [(entry.name, entry.epoch) for entry in changes.joined] == [("w0", 2)]
    assert changes.view is not None
    assert changes.view.epoch == 3
    again = muster.take_changes((), {"w0": 2}, 0.0)
    assert (dict(again.lost), again.joined, again.view) == ({}, (), None)


def test_a_member_that_can_be_reached_gets_a_view_though_nothing_else_changed() -> None:
    muster = make_muster(Epochs(Counter()))
    muster.want_view()
    assert muster.take_changes((), {"w0": 2}, 0.0).view is not None
    assert muster.take_changes((), {"w0": 2}, 0.0).view is None


def test_the_reason_of_a_loss_is_told_once() -> None:
    muster = make_muster(Epochs(Counter()))
    assert muster.dismiss("w0", "it burned", is_lost=True) == (
        "attention worker 'w0' went away: it burned"
    )
    assert muster.take_changes((), {"w0": 2}, 0.0).lost == {
        "w0": "attention worker 'w0' went away: it burned"
    }
    muster.dismiss("s0", "it drowned", is_lost=False)
    assert muster.take_reason(["s0"]) == "stage 's0' left: it drowned"
    assert muster.take_reason(["s0"]) is None


def test_a_reset_that_comes_too_late_for_its_epoch_changes_nothing() -> None:
    muster = make_muster(Epochs(Counter()))
    muster.ask_reset("w0", 1, PeerUnavailable("away"))
    muster.ask_reset("w9", 2, PeerUnavailable("away"))
    assert muster.take_changes((), {"w0": 2}, LATER).view is None
    muster.ask_reset("w0", 2, PeerUnavailable("away"))
    changes = muster.take_changes((), {"w0": 2}, LATER)
    assert changes.lost == {"w0": "attention worker 'w0' begins anew: away"}
    (entry,) = changes.joined
    assert entry.epoch > 2


def test_renewed_workers_hold_nothing_that_counts() -> None:
    muster = make_muster(Epochs(Counter()))
    view = muster.renew()
    (worker,) = view.workers
    assert 2 < worker.epoch < view.epoch


def test_nothing_is_forgotten_while_the_counter_cannot_be_raised() -> None:
    counter = Counter()
    epochs = Epochs(counter)
    muster = make_muster(epochs)
    use_up(epochs)
    muster.want_view()
    muster.ask_reset("w0", 2, PeerUnavailable("away"))
    counter.is_away = True
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            muster.take_changes((), {"w0": 2}, LATER)
    with pytest.raises(StoreUnavailable):
        muster.admit(Registration("w1", "1", "w1:1", worker_offer()))
    counter.is_away = False
    changes = muster.take_changes((), {"w0": 2}, LATER)
    assert [entry.name for entry in changes.joined] == ["w0"]
    assert changes.view is not None


def test_who_joins_while_the_store_is_locked_holds_up_nobody_else() -> None:
    counter = Counter()
    epochs = Epochs(counter)
    muster = make_muster(epochs)
    use_up(epochs)
    counter.is_asked.clear()
    counter.may_write.clear()
    answers: list[int | Refused] = []
    joining = threading.Thread(
        target=lambda: answers.append(
            muster.admit(Registration("w1", "1", "w1:1", worker_offer()))
        ),
        daemon=True,
    )
    joining.start()
    assert counter.is_asked.wait(WAIT_S)
    is_free = muster.changed.acquire(timeout=1.0)
    counter.may_write.set()
    assert is_free
    muster.changed.release()
    joining.join(WAIT_S)
    assert isinstance(answers[0], int)


def test_one_that_does_not_fit_is_refused() -> None:
    muster = make_muster(Epochs(Counter()))
    answer = muster.admit(Registration("s1", "1", "s1:1", stage_offer(0, 4)))
    assert isinstance(answer, Refused)
    assert "'s0' already" in answer.reason
