"""Work ahead of the network: in order, a bounded number early, errors at their place, without more threads."""

import itertools
import threading

import pytest
import torch

from glip_adapt.core.timing import recorded
from glip_adapt.engine.feeding import AHEAD, THREADS, ahead

CPU, GPU = torch.device("cpu"), torch.device("cuda")  # nothing is put there


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first():
    later = threading.Event()

    def slow_first(item):
        if item == 0 and THREADS > 1:
            later.wait(5)
        later.set()
        return item * item

    assert list(ahead(slow_first, range(50), GPU)) == [i * i for i in range(50)]


def test_no_more_than_a_few_items_are_drawn_early():
    drawn = []
    results = ahead(lambda item: item, (drawn.append(i) or i for i in itertools.count()), GPU)
    for position in range(20):
        assert next(results) == position
        assert len(drawn) <= position + 1 + AHEAD
    results.close()
    assert len(drawn) <= 20 + AHEAD


@pytest.mark.parametrize("device", [CPU, GPU])
def test_an_error_is_raised_when_its_turn_comes(device):
    results = ahead(lambda item: 1 // item, [1, 1, 0, 1], device)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("device", [CPU, GPU])
def test_an_error_of_the_items_themselves_passes_through(device):
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(ahead(lambda item: item, items(), device))


def test_threads_end_with_the_generator():
    results = ahead(lambda item: item, itertools.count(), GPU)
    next(results)
    assert any(thread.name.startswith("feeding") for thread in threading.enumerate())
    results.close()
    assert not any(thread.name.startswith("feeding") for thread in threading.enumerate())


def test_beside_a_network_on_the_cpu_there_are_no_threads():
    drawn = []
    results = ahead(lambda item: threading.current_thread(), (drawn.append(i) or i for i in range(9)), CPU)
    assert next(results) is threading.current_thread()
    assert drawn == [0]
    assert len(list(results)) == 8


@pytest.mark.parametrize("device", [CPU, GPU])
def test_waiting_counts_as_decoding(device):
    with recorded() as seconds:
        list(ahead(lambda item: item, range(3), device))
    assert seconds.keys() == {"decoding"}


@pytest.mark.parametrize("device", [CPU, GPU])
def test_nothing_to_do_starts_nothing(device):
    assert list(ahead(lambda item: 1 / 0, [], device)) == []
