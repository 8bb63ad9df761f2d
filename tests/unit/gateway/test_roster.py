"""Who fits the tiers of a model, and what one who does not is told: both sides, by name."""

from dataclasses import replace

import pytest

from glinthawk.core.dtype import DType
from glinthawk.gateway.roster import Roster
from glinthawk.wire.messages import AttentionOffer, Registration, StageOffer
from unit.gateway.members import MODEL, stage_offer, worker_offer


def make_roster(kv_dtype: DType | None = None) -> Roster:
    return Roster(MODEL, "digest", num_stages=2, num_workers=1, kv_dtype=kv_dtype)


def registration(name: str, offer: StageOffer | AttentionOffer) -> Registration:
    return Registration(name, "1", f"{name}:1", offer, instance=f"process of {name}")


def refusal(roster: Roster, name: str, offer: StageOffer | AttentionOffer) -> str:
    reason = roster.reason_to_refuse(registration(name, offer))
    assert reason is not None
    return reason


def test_a_stage_of_another_model_is_told_both_digests() -> None:
    reason = refusal(make_roster(), "s0", replace(stage_offer(0, 2), model_digest="other"))
    assert "'s0'" in reason
    assert "other" in reason
    assert "digest" in reason


def test_a_stage_with_other_layers_is_told_both_splits() -> None:
    reason = refusal(make_roster(), "s0", stage_offer(0, 4))
    assert "layers 0-3" in reason
    assert "0-1, 2-3" in reason


def test_layers_are_served_once_and_in_one_format() -> None:
    roster = make_roster()
    roster.add(registration("s0", stage_offer(0, 2)), 1)
    assert "'s0' already" in refusal(roster, "s9", stage_offer(0, 2))
    reason = refusal(roster, "s1", stage_offer(2, 4, DType.FLOAT16))
    assert "float16" in reason
    assert "float32" in reason
    assert roster.reason_to_refuse(registration("s0", stage_offer(0, 2))) is None


def test_the_format_is_settled_for_stages_and_pages_even_while_no_stage_is_there() -> None:
    roster = make_roster()
    roster.add(registration("s0", stage_offer(0, 2)), 1)
    roster.settle_format()
    roster.remove("s0")
    assert roster.geometry().dtype is DType.FLOAT32
    assert "float32" in refusal(roster, "s0", stage_offer(0, 2, DType.BFLOAT16))
    one_narrow_page = MODEL.kv_geometry(DType.FLOAT16).page_bytes
    assert "does not hold one page" in refusal(roster, "w0", worker_offer(one_narrow_page))


def test_a_worker_without_the_format_of_the_cache_is_told_both() -> None:
    roster = make_roster(DType.BFLOAT16)
    reason = refusal(roster, "w0", AttentionOffer(1 << 30, (DType.FLOAT16, DType.FLOAT32)))
    assert "bfloat16" in reason
    assert "float16, float32" in reason


def test_a_name_belongs_to_one_role() -> None:
    roster = make_roster()
    roster.add(registration("x", worker_offer()), 1)
    assert "'x' is taken by an attention worker" in refusal(roster, "x", stage_offer(0, 2))


def test_the_view_has_everybody_with_the_epochs_they_have_now() -> None:
    roster = make_roster()
    roster.add(registration("s1", stage_offer(2, 4)), 1)
    roster.add(registration("w0", worker_offer()), 2)
    roster.add(registration("s0", stage_offer(0, 2)), 3)
    roster.raise_epoch("w0", 7)
    view = roster.build_view(8)
    assert [(stage.name, stage.epoch) for stage in view.stages] == [("s0", 3), ("s1", 1)]
    assert [(worker.name, worker.epoch) for worker in view.workers] == [("w0", 7)]
    (entry,) = roster.workers()
    assert (entry.epoch, entry.instance) == (7, "process of w0")
    assert roster.is_complete


def test_who_is_missing_is_said_in_words() -> None:
    roster = make_roster()
    roster.add(registration("s1", stage_offer(2, 4)), 1)
    assert roster.describe_missing() == (
        "the stage of layers 0 to 1 and 1 of 1 workers did not register"
    )


@pytest.mark.parametrize(
    ("offer", "role"), [(stage_offer(0, 2), "stage"), (worker_offer(), "attention worker")]
)
def test_one_that_is_removed_is_named_by_its_role(
    offer: StageOffer | AttentionOffer, role: str
) -> None:
    roster = make_roster()
    roster.add(registration("x", offer), 1)
    assert roster.remove("x") == role
    assert roster.addresses() == {}
