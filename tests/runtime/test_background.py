"""Threads before and behind the device: order, bounds, errors."""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
import pytest

from mtkd.runtime.background import BackgroundCalls, prefetch, staged, to_host


def test_results_come_in_order_and_few_at_a_time() -> None:
    made: list[int] = []

    def slow_first(item: int) -> int:
        time.sleep(0.02 if item == 0 else 0)
        made.append(item)
        return 10 * item

    with closing(prefetch(slow_first, iter(range(20)), workers=3, waiting=4)) as results:
        for expected, result in enumerate(results):
            assert result == 10 * expected
            assert max(made) <= expected + 4
    assert sorted(made) == list(range(20))


def test_an_error_is_raised_in_its_turn() -> None:
    def read(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    taken = []
    with pytest.raises(ValueError, match="two"), closing(prefetch(read, range(9), workers=2, waiting=3)) as results:
        taken.extend(results)
    taken = []
    with pytest.raises(ValueError, match="two"):
        for item in prefetch(read, range(9), workers=2, waiting=3):
            taken.append(item)
    assert taken == [0, 1]


def test_calls_are_made_behind_and_few_wait() -> None:
    most, done = 0, []

    def write(item: int) -> None:
        time.sleep(0.002)
        done.append(item)

    with BackgroundCalls(workers=2, waiting=3) as calls:
        for item in range(12):
            calls.submit(write, item)
            most = max(most, item + 1 - len(done))
    assert sorted(done) == list(range(12)) and most <= 3


@pytest.mark.parametrize("waiting", [1, 9])
def test_the_earliest_error_is_raised_and_the_other_calls_are_made(waiting: int) -> None:
    done = []

    def write(item: int) -> None:
        time.sleep(0.01 if item == 1 else 0)
        if item in (1, 2):
            raise ValueError(f"write {item}")
        done.append(item)

    with pytest.raises(ValueError, match="write 1"), BackgroundCalls(workers=2, waiting=waiting) as calls:
        for item in range(5):
            calls.submit(write, item)
        raise ValueError("read 5")
    assert 0 in done
    if waiting == 9:
        assert sorted(done) == [0, 3, 4]


def test_an_interruption_is_not_taken_for_a_failed_call() -> None:
    def write() -> None:
        raise ValueError("write")

    with pytest.raises(KeyboardInterrupt), BackgroundCalls() as calls:
        calls.submit(write)
        raise KeyboardInterrupt


def test_arrays_are_staged_and_fetched_unchanged() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(to_host(staged(array[:, ::-1], "cpu"))().numpy(), array[:, ::-1])


@pytest.mark.cuda
def test_a_gpu_is_fed_from_and_read_into_pinned_memory() -> None:
    array = np.random.default_rng(0).integers(0, 256, (700, 900, 3), np.uint8)
    host = staged(array, "cuda")
    assert host.is_pinned()
    fetched = to_host(host.to("cuda", non_blocking=True).add(1).sub(1).transpose(0, 1))()
    assert fetched.is_pinned() and np.array_equal(fetched.numpy(), array.transpose(1, 0, 2))


def test_settling_waits_for_all_calls_and_raises_the_earliest_error() -> None:
    done: list[int] = []

    def write(item: int) -> None:
        time.sleep(0.01)
        if item == 7:
            raise ValueError("seven")
        done.append(item)

    with BackgroundCalls(workers=2, waiting=4) as calls:
        for item in range(4):
            calls.submit(write, item)
        calls.settle()
        assert sorted(done) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="seven"), BackgroundCalls() as calls:
        calls.submit(write, 7)
        calls.settle()
        pytest.fail("the error was forgotten")
