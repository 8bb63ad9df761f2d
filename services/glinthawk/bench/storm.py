"""Strikes the processes of a fleet, one event after the other, and times how it recovers.

After each event as many probes as there are workers are sent at once: requests for one token
each, made again while the gateway is away. The scheduler spreads them, so the last answer tells
when tokens come again everywhere. A probe that never gets its token is a hang.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from glinthawk.bench.client import ApiClient, CallFailed, Patient
from glinthawk.bench.disturbances import Action, Disturbance, Fate, Part
from glinthawk.bench.fleet import Fleet
from glinthawk.errors import GlinthawkError, PeerUnavailable

RECOVERY_S = 120.0
_DRAIN_CALL_S = 30.0


@dataclass(frozen=True)
class Strike:
    """An event that has happened. recovery_s: None where nothing had to recover, or nothing did;
    problem: what went wrong with it."""

    disturbance: Disturbance
    at_s: float
    recovery_s: float | None = None
    problem: str | None = None

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        event = self.disturbance
        return {
            "part": str(event.part),
            "action": str(event.action),
            "target": event.target,
            "at_s": round(self.at_s, 3),
            "recovery_s": None if self.recovery_s is None else round(self.recovery_s, 4),
            "problem": self.problem,
        }


class Storm:
    """Lets events happen to a fleet.

    Args:
        fleet: which this thread alone strikes.
        probe: body of a request for one token.
        show: is told of each event as it happens.
    """

    def __init__(
        self, fleet: Fleet, probe: dict[str, Any], show: Callable[[str], None] = lambda _: None
    ) -> None:
        self._fleet = fleet
        self._probe = probe
        self._show = show
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._recovering: list[threading.Thread] = []
        self.strikes: list[Strike] = []

    def rage(self, num_events: int, fate: Fate, is_over: Callable[[], bool]) -> None:
        """Let events happen until there were so many, or it is over for another reason."""
        for number in range(num_events):
            if is_over():
                break
            self._fleet.revive()
            event = fate.draw(self._fleet.crew())
            self._show(
                f"{number + 1}/{num_events} {event.part}: {event.action} {event.target or ''}"
            )
            self._happen(event)
            if event.waits:
                self.calm_down()
            time.sleep(event.pause_s)
        self.calm_down()
        self._fleet.revive()

    def calm_down(self) -> None:
        """Wait until everything has recovered, or is given up."""
        for thread in self._recovering:
            thread.join()
        self._recovering.clear()

    def _happen(self, event: Disturbance) -> None:
        at = time.monotonic()
        if event.is_strike:
            num_probes = max(1, len(self._fleet.crew().workers))
            thread = threading.Thread(target=self._recover, args=(event, at, num_probes))
            self._recovering.append(thread)
            self._strike(event, thread.start)
            return
        problem = None
        try:
            self._shift(event)
        except GlinthawkError as error:
            problem = str(error)
        self._note(Strike(event, at - self._began, problem=problem))

    def _strike(self, event: Disturbance, send_probes: Callable[[], None]) -> None:
        """Take a process away; one that is needed comes back at once."""
        assert event.target is not None, "only who is there can be struck"
        fleet, life = self._fleet, self._fleet.life(event.target)
        if event.action is Action.KILL:
            life.kill()
            send_probes()
        elif event.action is Action.TERMINATE:
            # Probes afterwards: while it ends, it may still answer.
            fleet.terminate(life)
        else:
            life.freeze()
            send_probes()
            time.sleep(event.for_s)
            if event.action is Action.FREEZE:
                life.thaw()
                return
            life.kill()
        fleet.remove(event.target)
        if event.part is Part.GATEWAY:
            fleet.begin_gateway()
        elif event.part is Part.STAGE:
            fleet.begin_stage(event.target)
        if event.action is Action.TERMINATE:
            send_probes()

    def _shift(self, event: Disturbance) -> None:
        """Let a worker join, drain, or come back from it."""
        fleet, target = self._fleet, event.target
        if target is None:
            fleet.join_worker()
            return
        control = Patient(fleet.control, _DRAIN_CALL_S)
        if event.action is Action.DRAIN:
            control.ask(lambda: _unless_missing(lambda: fleet.control.drain(target, event.for_s)))
        else:
            control.ask(lambda: _unless_missing(lambda: fleet.control.cancel_drain(target)))
        fleet.note_drain(target, is_draining=event.action is Action.DRAIN)

    def _recover(self, event: Disturbance, at: float, num_probes: int) -> None:
        """Time how long it takes until every probe has its token."""
        problems: list[str] = []

        def probe() -> None:
            try:
                send_probe(self._fleet.api, self._probe, at + RECOVERY_S)
            except GlinthawkError as error:
                problems.append(str(error))

        threads = [threading.Thread(target=probe) for _ in range(num_probes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took_s = None if problems else time.monotonic() - at
        problem = problems[0] if problems else None
        self._note(Strike(event, at - self._began, took_s, problem))

    def _note(self, strike: Strike) -> None:
        with self._lock:
            self.strikes.append(strike)


def send_probe(api: ApiClient, body: dict[str, Any], until: float) -> None:
    """Ask for a token, again and again while the gateway is away.

    Raises:
        PeerUnavailable: there was none until the deadline, on the monotonic clock.
        CallFailed: the answer was no token.
    """
    patient = Patient(api, max(0.0, until - time.monotonic()))
    answer = patient.ask(lambda: api.complete(body))
    if answer["usage"]["completion_tokens"] != 1:
        raise CallFailed(f"a probe was answered with {answer}")


def _unless_missing(call: Callable[[], None]) -> None:
    """Call; a worker that the gateway does not know yet will register."""
    try:
        call()
    except CallFailed as error:
        raise PeerUnavailable(str(error)) from error
