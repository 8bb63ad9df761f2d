"""How many lanes, and from how many sequences on."""

from glinthawk.config.batch import BatchConfig
from glinthawk.config.gateway import GatewayConfig, UpConfig
from glinthawk.gateway.lane_settings import LaneSettings, choose_lanes


def batch(**fields: object) -> LaneSettings:
    return choose_lanes(BatchConfig.model_validate({"input": "a", "output": "b", **fields}))


def test_members_with_machines_of_their_own_get_two_lanes_a_stage() -> None:
    apart = batch(stages=3, listen="127.0.0.1:7000")
    assert (apart.num_lanes, apart.min_lane_rows) == (6, 16)
    assert choose_lanes(GatewayConfig(stages=3)) == apart


def test_members_of_one_machine_open_a_second_lane_late() -> None:
    shared = batch(stages=2)
    assert (shared.num_lanes, shared.min_lane_rows) == (4, 256)
    assert choose_lanes(UpConfig(stages=2)) == shared


def test_what_is_given_holds() -> None:
    given = batch(lanes=5, min_lane_rows=1, max_lane_rows=9, prefill_tokens=77)
    assert given == LaneSettings(5, 9, 1, 77)
