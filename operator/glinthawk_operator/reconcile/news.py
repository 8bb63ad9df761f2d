"""What is told as Events: answers that changed in kind."""

from glinthawk_operator.crd.status import Condition, find_condition
from glinthawk_operator.reconcile.actions import Announce


def find_news(before: tuple[Condition, ...], after: tuple[Condition, ...]) -> list[Announce]:
    """Return Events for answers that changed in kind; KVPressure is for metrics."""
    news = []
    for condition in after:
        known = find_condition(before, condition.type)
        is_known = known is not None and known.status == condition.status
        if condition.type == "KVPressure" and condition.status != "True":
            continue
        if is_known and known is not None and known.reason == condition.reason:
            continue
        is_bad = (condition.type, condition.status) in (("Ready", "False"), ("Degraded", "True"))
        news.append(
            Announce(
                condition.reason,
                f"{condition.type} is {condition.status}: {condition.message}",
                is_warning=is_bad,
            )
        )
    return news
