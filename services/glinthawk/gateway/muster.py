"""Who is there, and what happened to them since it was last told: the roster behind a lock.

Threads of the membership admit and dismiss; the cluster's own thread takes the changes. Nothing
here sends anything, and nobody waits for the store under the lock: heartbeats come through it.
"""

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from glinthawk.errors import GlinthawkError
from glinthawk.gateway.epochs import Epochs
from glinthawk.gateway.resets import Resets
from glinthawk.gateway.roster import Roster, WorkerEntry
from glinthawk.wire.messages import Member, Refused, Registration, View


@dataclass(frozen=True)
class Changes:
    """What the others are to be told. lost: names, with the reasons. view: None where the
    members know all of it."""

    lost: Mapping[str, str]
    joined: tuple[WorkerEntry, ...]
    view: View | None


class Muster:
    """The members of one gateway. `changed` is its lock, and is notified of every change."""

    def __init__(self, roster: Roster, epochs: Epochs) -> None:
        self.roster = roster
        self.changed = threading.Condition()
        self._epochs = epochs
        self._reasons: dict[str, str] = {}
        self._resets = Resets()
        self._is_view_due = False

    # --- from the membership's threads, and the engine's

    def admit(self, registration: Registration) -> int | Refused:
        """Take a process in under a new epoch, or say why not.

        Raises:
            StoreUnavailable: there is no epoch for it now.
        """
        self._epochs.prepare()
        with self.changed:
            reason = self.roster.reason_to_refuse(registration)
            if reason is not None:
                return Refused(reason)
            epoch = self._epochs.take()
            self.roster.add(registration, epoch)
            self.changed.notify_all()
        return epoch

    def take_first_view(self) -> View | None:
        """Return the view for a worker that is there before the tiers are whole; None while the
        shape of the KV pages is not known.

        Raises:
            StoreUnavailable: there is no epoch for it now.
        """
        with self.changed:
            return self._build_view() if self.roster.has_geometry else None

    def want_view(self) -> None:
        """A member can be reached, and has no view yet."""
        with self.changed:
            self._is_view_due = True
            self.changed.notify_all()

    def dismiss(self, name: str, reason: str, *, is_lost: bool) -> str:
        """Forget a process that is gone, and return in words what happened."""
        with self.changed:
            role = self.roster.remove(name)
            text = f"{role} {name!r} {'went away' if is_lost else 'left'}: {reason}"
            self._reasons[name] = text
            self.changed.notify_all()
        return text

    def ask_reset(self, name: str, epoch: int, error: GlinthawkError) -> None:
        """Have a worker begin anew, unless it has left `epoch` behind already."""
        with self.changed:
            current = {entry.name: entry.epoch for entry in self.roster.workers()}
            if current.get(name) == epoch:
                self._resets.request(name, time.monotonic())
                self._reasons[name] = f"attention worker {name!r} begins anew: {error}"
                self.changed.notify_all()

    # --- from the cluster's thread

    def is_news(self, through: tuple[Member, ...], told: Mapping[str, int]) -> bool:
        """Whether stages differ from `through`, or workers and epochs from those `told`."""
        with self.changed:
            epochs = {entry.name: entry.epoch for entry in self.roster.workers()}
            return through != self.roster.stages() or epochs != told

    def take_reason(self, names: Collection[str]) -> str | None:
        """Return why one of `names` is gone, if one is."""
        with self.changed:
            reasons = [self._reasons.pop(name, None) for name in names]
        return next((reason for reason in reasons if reason is not None), None)

    def renew(self) -> View:
        """Give all workers a later epoch, so that all they hold is void, and return the view.

        Raises:
            StoreUnavailable: there is no epoch for it now; nothing changed.
        """
        self._epochs.prepare()
        with self.changed:
            epoch = self._epochs.take()
            for entry in self.roster.workers():
                self.roster.raise_epoch(entry.name, epoch)
            return self._build_view()

    def take_changes(
        self, through: tuple[Member, ...], told: Mapping[str, int], now: float
    ) -> Changes:
        """Begin the resets that are due, and return how workers differ from those `told`.

        Raises:
            StoreUnavailable: there is no epoch for it now; nothing is forgotten.
        """
        if self._is_change_due(told, now):
            self._epochs.prepare()
        with self.changed:
            self._reset_due(now)
            entries = {entry.name: entry for entry in self.roster.workers()}
            epochs = {name: entry.epoch for name, entry in entries.items()}
            lost = [name for name, epoch in told.items() if epochs.get(name) != epoch]
            joined = tuple(e for e in entries.values() if told.get(e.name) != e.epoch)
            view = self._build_view() if lost or joined or self._is_view_due else None
            reasons = {name: self._reasons.pop(name, "it registered again") for name in lost}
            # Of others than these, no loss is to be told any more.
            known = {*told, *(stage.name for stage in through)}
            self._reasons = {name: text for name, text in self._reasons.items() if name in known}
        return Changes(reasons, joined, view)

    def _is_change_due(self, told: Mapping[str, int], now: float) -> bool:
        """Whether `take_changes` is likely to need an epoch."""
        with self.changed:
            epochs = {entry.name: entry.epoch for entry in self.roster.workers()}
            return self._is_view_due or epochs != told or self._resets.is_due(now)

    def _reset_due(self, now: float) -> None:
        if self._resets.is_due(now):
            epoch = self._epochs.take()
            present = {entry.name for entry in self.roster.workers()}
            for name in self._resets.take_due(now):
                if name in present:
                    self.roster.raise_epoch(name, epoch)

    def _build_view(self) -> View:
        view = self.roster.build_view(self._epochs.take())
        self._is_view_due = False
        return view
