"""Work ahead of the network: in order, a bounded number early, errors at their place, without more threads."""

import itertools
import threading

import pytest
import torch

from glip_adapt.core.timing import recorded
from glip_adapt.engine.feeding import AHEAD, THREADS, ahead


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first():
    later = threading.Event()

    def slow_first(item):
        if item == 0 and THREADS > 1:
            later.wait(5)
        later.set()
        return item * item

    assert list(ahead(slow_first, range(50))) == [i * i for i in range(50)]


def test_no_more_than_a_few_items_are_drawn_early():
    drawn = []
    results = ahead(lambda item: item, (drawn.append(i) or i for i in itertools.count()))
    for position in range(20):
        assert next(results) == position
        assert len(drawn) <= position + 1 + AHEAD
    results.close()
    assert len(drawn) <= 20 + AHEAD


def test_an_error_is_raised_when_its_turn_comes():
    results = ahead(lambda item: 1 // item, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_an_error_of_the_items_themselves_passes_through():
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(ahead(lambda item: item, items()))


def test_torch_takes_no_more_threads_in_them_and_as_many_as_before_elsewhere():
    count, elsewhere = torch.get_num_threads(), []
    assert set(ahead(lambda item: torch.get_num_threads(), range(20))) == {1}
    thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), elsewhere) == (count, [count])


def test_waiting_counts_as_decoding():
    with recorded() as seconds:
        list(ahead(lambda item: item, range(3)))
    assert seconds.keys() == {"decoding"}


def test_nothing_to_do_starts_nothing():
    assert list(ahead(lambda item: 1 / 0, [])) == []
