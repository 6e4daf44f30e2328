"""Work in threads: in order, not far ahead, errors not lost."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from threecad import threads
from threecad.threads import free_processors, gave_way, give_way, ordered, thread_count


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


@pytest.mark.parametrize(("busy", "allowed", "free"), [(0.0, 2, 2), (1.0, 2, 1), (3.0, 2, 1), (2.9, 8, 5), (0.2, 4, 4)])
def test_free_processors_are_those_that_others_leave_and_at_least_one(
    busy: float, allowed: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "processors", lambda: list(range(allowed)))
    worked = iter([100.0, 100.0 + busy * 0.01])
    monkeypatch.setattr(threads, "_busy_s", lambda: next(worked))
    assert free_processors(0.01) == free


def test_all_processors_count_as_free_where_the_system_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "processors", lambda: list(range(3)))
    monkeypatch.setattr(threads, "_busy_s", lambda: None)
    assert free_processors(0.01) == 3


def test_a_command_computes_in_free_processors_unless_the_environment_says_how_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.setattr(threads, "free_processors", lambda: 5)
    monkeypatch.setenv(threads.NUMBER, "7")
    give_way()
    assert (os.environ[threads.NUMBER], gave_way()) == ("7", False)
    monkeypatch.delenv(threads.NUMBER)
    give_way()
    assert (os.environ[threads.NUMBER], gave_way()) == ("5", True)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux says how busy processors are")
def test_what_this_process_computes_shows_in_the_load() -> None:
    before, end = threads._busy_s(), time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = threads._busy_s()
    assert before is not None and after is not None
    assert after - before >= 0.05
