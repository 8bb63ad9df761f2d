"""What is said of a resource: four conditions, each with a reason and the next step."""

from dataclasses import dataclass

from glinthawk_operator.autoscaler import Rules
from glinthawk_operator.crd.spec import GlinthawkDeploymentSpec
from glinthawk_operator.crd.status import Condition, ConditionState, ConditionType, find_condition
from glinthawk_operator.gateway_client import LOST
from glinthawk_operator.manifests.names import ATTENTION, GATEWAY, STAGE
from glinthawk_operator.reconcile.observed import (
    Observed,
    PodView,
    format_time,
    parse_time,
)
from glinthawk_operator.reconcile.plan import Plan

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"))
MAX_MESSAGE = 1000
_STUCK = "ProgressDeadlineExceeded"


@dataclass(frozen=True)
class Subject:
    """What conditions are about. wanted_workers: as decided. gateway_error: why it is silent.
    refused: what the API server did not let be done."""

    spec: GlinthawkDeploymentSpec
    generation: int
    observed: Observed
    plan: Plan
    rules: Rules
    wanted_workers: int
    gateway_error: str | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Answer:
    status: ConditionState
    reason: str
    message: str


def build_conditions(subject: Subject, before: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Return the conditions; one whose answer is as before keeps its time."""
    answers: tuple[tuple[ConditionType, _Answer], ...] = (
        ("Ready", _ready(subject)),
        ("Progressing", _progressing(subject)),
        ("Degraded", _degraded(subject)),
        ("KVPressure", _pressure(subject)),
    )
    return tuple(_condition(kind, answer, subject, before) for kind, answer in answers)


def _condition(
    kind: ConditionType, answer: _Answer, subject: Subject, before: tuple[Condition, ...]
) -> Condition:
    known = find_condition(before, kind)
    if kind == "Progressing":
        answer = _give_up(answer, subject, known)
    since = format_time(subject.observed.now_s)
    if known is not None and known.status == answer.status:
        since = known.last_transition_time
    return Condition(
        type=kind,
        status=answer.status,
        observed_generation=subject.generation,
        last_transition_time=since,
        reason=answer.reason,
        message=answer.message[:MAX_MESSAGE],
    )


def _give_up(answer: _Answer, subject: Subject, known: Condition | None) -> _Answer:
    """Return that a rollout is stuck, once it has made no end within its deadline."""
    if answer.status != "True" or known is None:
        return answer
    deadline_s = subject.spec.progress_deadline_seconds
    since_s = parse_time(known.last_transition_time) or subject.observed.now_s
    is_same = known.observed_generation == subject.generation
    is_over = known.status == "True" and subject.observed.now_s - since_s > deadline_s
    if is_same and (is_over or known.reason == _STUCK):
        message = f"not done within {deadline_s} s: {answer.message}; see Degraded"
        return _Answer("False", _STUCK, message)
    return answer


def _ready(subject: Subject) -> _Answer:
    observed = subject.observed
    stages, num_stages = observed.num_ready(STAGE), subject.spec.gpu_tier.stages
    workers = observed.num_ready(ATTENTION)
    if not observed.num_ready(GATEWAY) and observed.inspection is None:
        return _Answer(
            "False", "GatewayNotReady", f"the gateway's pod is not ready{_why(subject, GATEWAY)}"
        )
    if stages < num_stages:
        return _Answer(
            "False",
            "StagesMissing",
            f"{stages} of {num_stages} stages are ready{_why(subject, STAGE)}",
        )
    if not workers:
        return _Answer(
            "False", "WorkersMissing", f"no attention worker is ready{_why(subject, ATTENTION)}"
        )
    if observed.inspection is None:
        return _Answer(
            "False",
            "GatewayUnreachable",
            f"the gateway does not answer the operator: {subject.gateway_error}; see its log, and "
            "whether a network policy stands between",
        )
    if not observed.inspection.is_ready:
        joined = sum(worker.state != LOST for worker in observed.inspection.workers)
        return _Answer(
            "False",
            "TiersNotJoined",
            f"{observed.inspection.num_registered_stages} of {num_stages} stages and {joined} "
            "workers have joined the gateway; see the logs of those that have not",
        )
    return _Answer("True", "Serving", "all stages and at least one worker are there")


def _progressing(subject: Subject) -> _Answer:
    rollout = subject.plan.rollout
    if rollout.failed:
        return _Answer("False", "ImageCheckFailed", "the old generation serves; see Degraded")
    if rollout.checking:
        return _Answer(
            "True",
            "CheckingImages",
            f"checking {', '.join(rollout.checking)} before any pod changes",
        )
    if not rollout.is_done:
        count = rollout.num_outdated
        outdated = f"{count} pods are still of an earlier template"
        return _Answer("True", "RollingOut", outdated if count else "this generation is applied")
    missing = _missing_pods(subject)
    if missing:
        return _Answer("True", "PodsStarting", f"waiting for {missing}")
    return _Answer("False", "RolledOut", "every pod is of this generation")


def _degraded(subject: Subject) -> _Answer:
    observed, rollout = subject.observed, subject.plan.rollout
    if rollout.failed:
        checks = "; ".join(f"image {image} does not start: {why}" for image, why in rollout.failed)
        return _Answer(
            "True",
            "ImageCheckFailed",
            f"{checks}; the old generation serves: name an image that is there",
        )
    if observed.missing:
        return _Answer(
            "True", "ReferenceMissing", f"{'; '.join(observed.missing)}: create it, or name another"
        )
    if subject.refused:
        return _Answer("True", "ApiRefused", "; ".join(subject.refused))
    problems = [
        (pod.name, *pod.problem)
        for component in (STAGE, GATEWAY, ATTENTION)
        if (pod := _troubled(observed, component)) is not None and pod.problem is not None
    ]
    if problems:
        # The scheduler tries again after an error of its own: what else is wrong says more.
        name, reason, message = min(problems, key=lambda one: one[1] == "SchedulerError")
        return _Answer("True", _reason(reason), f"{name}: {message or reason}")
    for workload in observed.workloads.values():
        if workload.refusal is not None:
            return _Answer("True", "PodsRefused", f"{workload.name}: {workload.refusal}")
    missing = _missing_pods(subject)
    if missing:
        return _Answer("True", "PodsMissing", f"waiting for {missing}{_not_made(observed)}")
    return _Answer("False", "AsWanted", "every pod that is wanted is ready")


def _pressure(subject: Subject) -> _Answer:
    inspection = subject.observed.inspection
    if inspection is None or not inspection.has_figures:
        return _Answer("Unknown", "NoFigures", "the gateway has not said how much KV is demanded")
    most = subject.rules.max_replicas * subject.rules.capacity_per_worker_bytes
    if inspection.kv_demanded_bytes > most:
        return _Answer(
            "True",
            "DemandAboveMaximum",
            f"the {subject.rules.max_replicas} workers of scaling.maxReplicas hold "
            f"{show_bytes(most)} and more is demanded: raise maxReplicas or kvCache.memory; until "
            "then sequences wait",
        )
    return _Answer("False", "DemandFits", "the memory tier can hold what is demanded")


def _missing_pods(subject: Subject) -> str:
    wanted = {
        "gateway": (1, subject.observed.num_ready(GATEWAY)),
        "stages": (subject.spec.gpu_tier.stages, subject.observed.num_ready(STAGE)),
        "workers": (subject.wanted_workers, subject.observed.num_ready(ATTENTION)),
    }
    return ", ".join(
        f"{name} ({ready} of {count} ready)"
        for name, (count, ready) in wanted.items()
        if ready < count
    )


def _not_made(observed: Observed) -> str:
    """Return where it is told why a StatefulSet makes no pods, such as a quota."""
    for component in (GATEWAY, STAGE):
        workload = observed.workloads.get(component)
        if workload is None:
            continue
        num_pods = sum(pod.component == component for pod in observed.pods)
        if num_pods < workload.replicas:
            return (
                f"; {num_pods} of {workload.replicas} pods are made: kubectl describe "
                f"{workload.kind.lower()} {workload.name} says what holds them up"
            )
    return ""


def _troubled(observed: Observed, component: str) -> PodView | None:
    for pod in observed.pods_of(component):
        if not pod.is_ready and pod.problem is not None:
            return pod
    return None


def _why(subject: Subject, component: str) -> str:
    pod = _troubled(subject.observed, component)
    if pod is None or pod.problem is None:
        return f": kubectl describe pod -l app.kubernetes.io/component={component} tells more"
    reason, message = pod.problem
    return f": {pod.name}: {message or reason}"


def _reason(text: str) -> str:
    """Return a container's reason as a condition may have it."""
    word = "".join(part[:1].upper() + part[1:] for part in text.replace("-", " ").split())
    cleaned = "".join(character for character in word if character.isalnum())
    return cleaned if cleaned[:1].isalpha() else "PodFailed"


def show_bytes(num_bytes: int) -> str:
    """Return a number of bytes as people read it."""
    for size, unit in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
