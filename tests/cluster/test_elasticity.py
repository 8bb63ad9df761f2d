"""The memory tier follows KV demand on a real cluster, and nothing is lost on the way."""

import time
from collections.abc import Mapping

from cluster.api import Api
from cluster.live import NAME, NAMESPACE, OPERATOR, SYSTEM, Deployment, read_metrics
from cluster.work import FINAL, Lines, begin_batch, finish_batch, judge, read_batch
from glinthawk.bench.tally import Answer, Tally

QUICK = {"stabilizationWindowSeconds": 20, "periodSeconds": 5, "drainTimeoutSeconds": 60}
GROWN_S, SHRUNK_S = 180.0, 180.0


def test_a_batch_grows_the_tier_to_three_and_its_end_shrinks_it_to_one(
    demo: Deployment, api: Api, lines: Lines, here: Mapping[str, Answer], label: str
) -> None:
    demo.apply({"memoryTier": {"scaling": {"scaleDown": QUICK}}})
    demo.await_workers(1)
    demo.await_settled()
    stages = {pod["metadata"]["uid"] for pod in demo.pods("stage")}
    first_event = len(demo.events())
    batch_id = begin_batch(api, lines, label)
    began = time.monotonic()
    demo.await_workers(3, GROWN_S)
    print(f"three workers after {time.monotonic() - began:.0f} s")
    assert read_batch(api, batch_id).status not in FINAL, "the batch was over before they were"
    assert demo.memory_tier["lastDecision"]["toReplicas"] == 3
    results = finish_batch(api, batch_id)
    print(f"the batch took {time.monotonic() - began:.0f} s")
    assert judge(results, lines, here) == Tally()
    print(f"one worker {demo.await_workers(1, SHRUNK_S):.0f} s later")
    assert {pod["metadata"]["uid"] for pod in demo.pods("stage")} == stages
    _check_decisions(demo, first_event)


def _check_decisions(demo: Deployment, first_event: int) -> None:
    """Each decision is in the status, an Event, and the operator's metrics."""
    decision = demo.memory_tier["lastDecision"]
    assert decision["toReplicas"] == 1
    assert "of KV demanded" in decision["message"]
    events = demo.events()[first_event:]
    notes = [str(one["message"]) for one in events]
    scaled = [note for note, one in zip(notes, events, strict=True) if one["reason"] == "Scaled"]
    assert scaled[0].startswith("1 -> "), scaled
    assert "3 it is" in " ".join(scaled)
    assert scaled[-1].endswith("1 it is"), scaled
    assert not [note for note in notes if "not drained" in note]
    metrics = read_metrics(OPERATOR, namespace=SYSTEM)
    labels = f'{{deployment="{NAME}",namespace="{NAMESPACE}"}}'
    assert f"glinthawk_operator_wanted_workers{labels} 1.0" in metrics
    counted = [line for line in metrics.splitlines() if "_decisions_total{" in line]
    assert sum(float(line.split()[-1]) for line in counted if f'"{NAME}"' in line) >= 2
