"""Where a stage's steps may go now: which connections there are, and for which epochs.

The gateway's view says who is wanted; connections come up, and break, after it. A step that comes
before what it needs is held, one of a past epoch is dropped. So a worker that joins, or is lost,
disturbs no step of the others. It knows no sockets: the links dial, and tell.

    view ------> wanted: worker -> epoch, next stage
    link up, link lost ------> what of it is there
    judge(worker, epoch) ----> RUN, HOLD, DROP or FAIL
"""

from enum import Enum

from glinthawk.errors import GlinthawkError, PeerUnavailable
from glinthawk.stage.work import LinkLost, LinkUp, ViewChanged
from glinthawk.wire.messages import Member
from glinthawk.wire.outbox import Outbox


class Fate(Enum):
    """What becomes of a step that has arrived."""

    RUN = 1
    HOLD = 2
    DROP = 3
    FAIL = 4


class Routes:
    """The connections of one stage. The loop's thread owns it."""

    def __init__(self) -> None:
        self._view_epoch = 0
        self._wanted: dict[str, Member] = {}
        self._next: Member | None = None
        self._links: dict[Member, Outbox | GlinthawkError] = {}

    @property
    def next_stage(self) -> Outbox | None:
        """The connection to the next stage; None on the last stage, and while it is not there."""
        link = self._links.get(self._next) if self._next is not None else None
        return link if isinstance(link, Outbox) else None

    @property
    def is_cut_off(self) -> bool:
        """Whether the connection to the next stage broke, or could not be made."""
        return self._next is not None and isinstance(self._links.get(self._next), GlinthawkError)

    def change(self, event: ViewChanged) -> frozenset[str]:
        """Follow a view; return the workers whose steps and sequences are void with it."""
        wanted = {member.name: member for member in event.workers}
        void = frozenset(
            name
            for name, member in self._wanted.items()
            if name not in wanted or wanted[name].epoch != member.epoch
        )
        self._view_epoch = event.epoch
        self._wanted = wanted
        self._next = event.next_stage
        members = {*event.workers, event.next_stage}
        self._links = {
            member: link
            for member, link in self._links.items()
            # One that broke is dialled again.
            if member in members and isinstance(link, Outbox)
        }
        return void

    def link_up(self, event: LinkUp) -> None:
        """Learn that a member can be reached."""
        self._links[event.member] = event.outbox

    def link_lost(self, event: LinkLost) -> None:
        """Learn that a member cannot be reached, until a later view."""
        self._links[event.member] = event.error

    def judge(self, worker: str, epoch: int) -> Fate:
        """Say what becomes of a step of `worker`, planned for its `epoch`."""
        member = self._wanted.get(worker)
        if member is None:
            # A later view may bring it; one that is newer than the step has taken it away.
            return Fate.DROP if epoch < self._view_epoch else Fate.HOLD
        if epoch != member.epoch:
            return Fate.DROP if epoch < member.epoch else Fate.HOLD
        link = self._links.get(member)
        if isinstance(link, GlinthawkError):
            return Fate.FAIL
        is_whole = self._next is None or self._next in self._links
        return Fate.RUN if link is not None and is_whole else Fate.HOLD

    def outbox(self, worker: str) -> Outbox:
        """Return the connection to a worker whose step may run."""
        link = self._links[self._wanted[worker]]
        assert isinstance(link, Outbox), "judge has said RUN"
        return link

    def failure(self, worker: str) -> GlinthawkError:
        """Return why a worker cannot be reached."""
        member = self._wanted.get(worker)
        link = None if member is None else self._links.get(member)
        if isinstance(link, GlinthawkError):
            return link
        return PeerUnavailable(f"attention worker {worker!r} is not connected to this stage")
