"""One function over many items, in processes of this machine or on a Ray cluster.

What goes over the line is pickled: a function that can be imported, items, results. An item whose process dies is tried
again; one that fails says why; every item ends exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from threecad.allocation import keep_freed_memory
from threecad.errors import SettingsError, ThreeCADError
from threecad.threads import asked_threads, processors

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Engine:
    """Where work is done."""

    kind: Literal["local", "ray"] = "local"
    workers: int = 1  # at a time on one machine; they share its processors
    address: str | None = None  # HOST:PORT of a Ray cluster; without, one is started on this machine

    def __post_init__(self) -> None:
        if self.address and self.kind != "ray":
            raise SettingsError(f"{self.address} is the address of a Ray cluster; add --engine ray, or leave it out")

    @property
    def share(self) -> int:
        """Processors of one worker on this machine."""
        return max(1, len(processors()) // self.workers)

    @property
    def threads(self) -> int:
        """Threads of one worker: one for each of its processors, or as few as OMP_NUM_THREADS allows."""
        return min(self.share, asked_threads() or self.share)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an item went."""

    index: int  # of the item
    result: Any  # what the function gave; None where it failed
    failure: str | None  # why it failed
    died: bool = False  # it is the process that ended, every time, and not the function that failed


def map_tasks(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    engine: Engine | None = None,
    *,
    retries: int = 1,
    fresh: bool = True,
) -> Iterator[Ended]:
    """How each item went, each exactly once, in the order in which they end.

    Args:
        function: at the top of a module, so that another process can import it.
        retries: how often an item is tried again when its process dies; one that raises is not.
        fresh: on Ray each item has a new process, which gives back all memory and its GPU; without, processes live for
            many items, as those of this machine do, and what they have loaded stays.

    Raises:
        SettingsError: Ray is asked for and not installed.
        RunError: the cluster does not answer.
    """
    engine = engine or Engine()
    if not items:
        return
    if engine.kind == "ray":
        from threecad.engines.cluster import map_on_ray

        yield from map_on_ray(function, items, engine, retries, fresh)
    else:
        from threecad.engines.local import map_locally

        yield from map_locally(function, items, engine, retries)


def attempt(function: Callable[[Item], Any], index: int, item: Item) -> Ended:
    """The function's result on an item, or why there is none; runs in a worker's process."""
    keep_freed_memory()
    try:
        return Ended(index, function(item), None)
    except ThreeCADError as error:
        return Ended(index, None, str(error))
    except Exception as error:  # one item's fault must not cost the others
        return Ended(index, None, f"{type(error).__name__}: {error}")
