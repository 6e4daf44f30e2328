"""What commands show: bars on a terminal, plain whole lines off it, and nothing from ranks other than 0."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from threecad.training import StepReport

LINE_EVERY_S = 20.0
"""Seconds between two lines of progress where there is no terminal to draw bars on."""


NARROW = 100
"""Columns below which bars and loss terms make room for counts and the time left."""

_PLAIN = {"×": "x", "─": "-", "–": "-", "…": "...", "→": "->", "·": "-", "≥": ">=", "≤": "<="}


def prepare_streams() -> None:
    """Make standard output and error accept whatever is printed.

    A service may start a command without them: what is printed then goes nowhere. Where their encoding lacks a
    character, or a file name is not UTF-8, a plain one or its code stands in.
    """
    codecs.register_error("threecad.plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 – as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="threecad.plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands in for characters that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    plain = (_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters)
    return "".join(plain), error.end


def is_quiet() -> bool:
    """Whether this is a further process of a data-parallel fit, which leaves the talking to the first."""
    processes, rank = os.environ.get("WORLD_SIZE", "1"), os.environ.get("LOCAL_RANK", "0")
    return processes not in ("", "0", "1") and rank not in ("", "0")


def note(line: str) -> None:
    """A line about the work, to standard error."""
    if not is_quiet():
        print(line, file=sys.stderr, flush=True)


def result(line: str) -> None:
    """A line that was asked for, to standard output."""
    if not is_quiet():
        print(line, flush=True)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns to standard output, numbers on the right; one line a row, however long."""
    if is_quiet():
        return
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    numeric = [all(_is_number(row[column]) for row in rows) for column in range(len(header))]
    rule = ["─" * width for width in widths]
    for line in [header, *([rule] if sys.stdout.isatty() else []), *rows]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


@contextmanager
def interruptible(hint: Callable[[], str]) -> Iterator[None]:
    """Within, Ctrl-C ends the command with a line that says what is left to do."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"threecad: interrupted; {hint()}")
        raise typer.Exit(130) from None


class Progress(Protocol):
    """Shows how far the work is."""

    def show(self, title: str, done: int, total: int, extra: str = "") -> None:
        """`done` of `total` steps of the work called `title` are done."""

    def notify(self, line: str) -> None:
        """A line worth reading, beside the bars."""


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars with the time left on a terminal, a line now and then elsewhere."""
    if is_quiet():
        yield _Silence()
    elif sys.stderr.isatty():
        from rich.console import Console

        with _Bars(Console(stderr=True)) as bars:
            yield bars
    else:
        yield _Lines()


def counting(shown: Progress, title: str) -> Callable[[int, int], None]:
    """A callback that shows how many are done, and of how many."""
    return lambda done, total: shown.show(title, done, total)


def watching(shown: Progress, job: str = "") -> Callable[[StepReport], None]:
    """A callback that shows the steps of each phase with its loss terms and rate; `job` goes before the phase."""

    def watch(report: StepReport) -> None:
        terms = [f"{name} {value:.3g}" for name, value in report.terms.items()]
        rate = [f"rate {report.rate:.1e}"] if report.rate is not None else []
        shown.show(f"{job} {report.phase}".strip(), report.step, report.steps, "  ".join([*terms, *rate]))

    return watch


class _Silence:
    def show(self, title: str, done: int, total: int, extra: str = "") -> None:
        return

    def notify(self, line: str) -> None:
        return


class _Lines:
    """A line every `LINE_EVERY_S` seconds of work."""

    def __init__(self) -> None:
        self.title, self.start, self.last = "", 0.0, 0.0

    def show(self, title: str, done: int, total: int, extra: str = "") -> None:
        now = time.monotonic()
        if title != self.title:
            self.title, self.start, self.last, self.first = title, now, now, done
        if now - self.last >= LINE_EVERY_S and done > self.first:
            self.last = now
            left_s = (now - self.start) * (total - done) / (done - self.first)
            note("  ".join(filter(None, (f"{title} {done}/{total}", f"{clock(left_s)} left", extra))))

    def notify(self, line: str) -> None:
        note(line)


class _Bars:
    """One bar for each work, kept when it is done; on a narrow terminal its title, count and time left alone."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        narrow = console.width < NARROW
        fixed, rest = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis", ratio=1)
        title = TextColumn("{task.description}", markup=False, table_column=rest if narrow else fixed)
        bar = BarColumn(bar_width=24)
        count = MofNCompleteColumn(table_column=fixed)
        left = TimeRemainingColumn(elapsed_when_finished=True, table_column=fixed)
        extra = TextColumn("{task.fields[extra]}", style="dim", markup=False, table_column=rest)
        columns = (title, count, left) if narrow else (title, bar, count, left, extra)
        self.bars = Progress(*columns, console=console, expand=True)

    def __enter__(self) -> _Bars:
        self.tasks: dict[str, Any] = {}
        self.bars.start()
        return self

    def show(self, title: str, done: int, total: int, extra: str = "") -> None:
        if title not in self.tasks:
            # A work that is found half done, such as a resumed fit, is timed from there.
            self.tasks[title] = self.bars.add_task(title, total=total, completed=done - 1, extra=extra)
        self.bars.update(self.tasks[title], completed=done, total=total, extra=extra)

    def notify(self, line: str) -> None:
        self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()


def clock(seconds: float) -> str:
    """`1:05` or `2:00:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(".", "", 1).isdigit()
