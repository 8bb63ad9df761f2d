from typing import Any

import pytest
from pydantic import ValidationError

from glinthawk_operator.crd.status import (
    Condition,
    GlinthawkDeploymentStatus,
    GpuTierStatus,
    KvBytesStatus,
    MemoryTierStatus,
    SummaryStatus,
    build_summary,
    find_condition,
)

READY = {
    "type": "Ready",
    "status": "True",
    "observedGeneration": 3,
    "lastTransitionTime": "2026-01-02T03:04:05Z",
    "reason": "TokensFlow",
    "message": "",
}


def test_a_status_begins_empty() -> None:
    status = GlinthawkDeploymentStatus()
    assert status.model_dump(by_alias=True, exclude_none=True) == {"conditions": ()}


def test_a_status_survives_being_written_and_read() -> None:
    document = {"observedGeneration": 3, "conditions": [READY], "summary": {"stages": "2/2"}}
    status = GlinthawkDeploymentStatus.model_validate(document)
    assert status.model_dump(mode="json", by_alias=True, exclude_none=True) == document


@pytest.mark.parametrize(
    "change",
    [
        {"reason": "not ready"},
        {"reason": "notReady"},
        {"reason": ""},
        {"type": "Fine"},
        {"status": "yes"},
        {"lastTransitionTime": "yesterday"},
    ],
)
def test_conditions_keep_to_kubernetes_form(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Condition.model_validate(READY | change)


def test_a_condition_is_found_by_its_type() -> None:
    ready = Condition.model_validate(READY)
    assert find_condition([ready], "Ready") is ready
    assert find_condition([ready], "Degraded") is None


def test_the_summary_says_what_is_known() -> None:
    gpu = GpuTierStatus(stages=2, ready_stages=1)
    memory = MemoryTierStatus(
        replicas=3,
        desired_replicas=4,
        ready_replicas=2,
        kv_bytes=KvBytesStatus(capacity=1000, used=419),
    )
    summary = build_summary(num_stages=2, gpu=gpu, memory=memory)
    assert summary == SummaryStatus(stages="1/2", workers="2/4", kv_used="41%")


@pytest.mark.parametrize(
    "kv",
    [
        None,
        KvBytesStatus(),
        KvBytesStatus(used=1),
        KvBytesStatus(capacity=1),
        KvBytesStatus(capacity=0, used=0),
    ],
)
def test_the_summary_claims_nothing_that_is_not_known(kv: KvBytesStatus | None) -> None:
    memory = MemoryTierStatus(ready_replicas=1, kv_bytes=kv)
    assert build_summary(num_stages=2, gpu=None, memory=memory) == SummaryStatus()
    assert build_summary(num_stages=2, gpu=GpuTierStatus(), memory=None) == SummaryStatus()
