"""Which threads torch computes on."""

import threading

import pytest
import torch

from glinthawk.errors import InvalidConfig
from glinthawk.stage.threads import SMALL_ELEMENTS, call_apart, threads_for


@pytest.fixture(autouse=True)
def _two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("elements", [1, SMALL_ELEMENTS])
def test_small_operations_have_one_thread_and_give_the_others_back(elements: int) -> None:
    with threads_for(torch.empty(elements)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_large_operations_keep_all_threads() -> None:
    with threads_for(torch.empty(SMALL_ELEMENTS + 1)):
        assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="size"), threads_for(torch.empty(4)):
        torch.empty(4).add_(torch.empty(3))
    assert torch.get_num_threads() == 2


def test_a_call_apart_returns_raises_and_leaves_no_thread() -> None:
    threads: list[threading.Thread] = []

    def work() -> int:
        threads.append(threading.current_thread())
        return 7

    assert call_apart(work) == 7
    assert threads[0] is not threading.current_thread()
    threads[0].join(10)
    assert not threads[0].is_alive()

    def fail() -> None:
        raise InvalidConfig("no such layer")

    with pytest.raises(InvalidConfig, match="no such layer"):
        call_apart(fail)
