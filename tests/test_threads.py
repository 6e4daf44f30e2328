"""Work in threads: in order, not far ahead, errors not lost."""

from __future__ import annotations

import threading
import time

import pytest

from threecad.threads import ordered, thread_count


def test_work_in_threads_comes_back_in_order_and_does_not_run_ahead() -> None:
    started, lock = [], threading.Lock()

    def work(number: int) -> int:
        with lock:
            started.append(number)
        time.sleep(0.001 * (number % 3))
        return number * number

    results = ordered(work, range(100), ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(started) <= 3 + 4 + 1
    assert list(results) == [number * number for number in range(3, 100)]


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        list(ordered(lambda number: 1 // number, [2, 1, 0, 5]))


def test_threads_are_as_many_as_processors_that_may_be_used_and_at_least_two(monkeypatch: pytest.MonkeyPatch) -> None:
    assert thread_count() >= 2
    for allowed, expected in ((1, 2), (5, 5)):
        monkeypatch.setattr("os.sched_getaffinity", lambda process, n=allowed: set(range(n)), raising=False)
        assert thread_count() == expected
