"""Busy shares follow the last seconds, and outlive neither a member nor its restart."""

import pytest

from glinthawk.gateway.busy import BusyMeter


def test_nothing_is_known_from_one_heartbeat() -> None:
    meter = BusyMeter()
    assert meter.share("w") is None
    meter.note("w", 0.0, 5.0)
    assert meter.share("w") is None


def test_the_share_is_that_of_the_window_not_of_all_time() -> None:
    meter = BusyMeter(window_s=10.0)
    busy = 0.0
    for second in range(100):
        busy += 1.0 if second >= 50 else 0.0
        meter.note("w", float(second), busy)
    assert meter.share("w") == pytest.approx(1.0)
    for second in range(100, 120):
        busy += 0.25
        meter.note("w", float(second), busy)
    assert meter.share("w") == pytest.approx(0.25)


def test_a_process_that_started_again_begins_anew() -> None:
    meter = BusyMeter()
    meter.note("w", 0.0, 100.0)
    meter.note("w", 1.0, 101.0)
    meter.note("w", 2.0, 0.0)
    assert meter.share("w") is None
    meter.note("w", 4.0, 1.0)
    assert meter.share("w") == pytest.approx(0.5)


def test_a_member_that_is_gone_is_forgotten() -> None:
    meter = BusyMeter()
    meter.note("w", 0.0, 0.0)
    meter.note("w", 1.0, 1.0)
    meter.forget("w")
    assert meter.share("w") is None
