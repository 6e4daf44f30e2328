"""What a terminal shows, and what becomes of it where there is none."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from conftest import plate, save
from threecad.cli import UNWRAPPED, app
from threecad.cli.terminal import _Bars, is_quiet


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`threecad …` under bash."""
    line = f"exec {sys.executable} -m threecad {command}"
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, timeout=280, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("closed", ["methods >&-", "methods 2>&-", "methods <&- >&- 2>&-", "data cache >&-"])
def test_a_command_without_standard_streams_works(closed: str) -> None:
    done = shell(closed)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


def test_without_standard_output_a_refusal_still_reaches_standard_error_and_the_exit_code(tmp_path: Path) -> None:
    done = shell(f"show {tmp_path} >&-")
    assert done.returncode == 2
    assert done.stderr.decode().startswith("threecad: expected a run folder")


def test_without_standard_error_notes_do_not_land_among_the_results() -> None:
    assert shell("weights list 2>&-").stdout.decode().splitlines() == ["TAG  MB  SHA-256"]


def test_output_that_is_not_utf_8_gets_plain_characters(tmp_path: Path) -> None:
    save(tmp_path / "small" / "8.png", plate(1)[:8, :8])
    done = shell(f"data verify {tmp_path / 'small'}", PYTHONIOENCODING="ascii")
    assert b"Traceback" not in done.stderr
    assert b"8x8" in done.stdout + done.stderr


def test_a_file_name_that_is_not_utf_8_is_printed_with_its_code(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"teil_\xfc")
    folder.mkdir()
    done = subprocess.run([sys.executable, "-m", "threecad", "show", folder], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"threecad: expected a run folder") and rb"teil_\udcfc" in done.stderr


@pytest.mark.parametrize(
    ("environment", "quiet"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "1"}, False),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, True),
    ],
)
def test_only_a_further_process_of_a_data_parallel_fit_is_quiet(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], quiet: bool
) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_quiet() == quiet


@pytest.mark.parametrize("columns", [40, 80, 100, 130, 200])
def test_a_terminal_of_any_width_shows_count_and_time_left(columns: int) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=columns, color_system=None)
    with _Bars(console) as bars:
        bars.show("aluminium_sheet joint descent", 299, 12_000, "distillation 0.0123  recovery 0.0456  rate 5.0e-04")
        bars.show("aluminium_sheet joint descent", 300, 12_000, "distillation 0.0123  recovery 0.0456  rate 5.0e-04")
    last = [line for line in written.getvalue().splitlines() if "aluminium" in line][-1]
    assert len(last.replace("\x1b[2K", "")) <= columns
    assert "300/12000" in last and ":" in last.split("300/12000")[1]
    assert ("rate 5.0e-04" in last) == (columns >= 130)


def commands() -> Iterator[tuple[str, str]]:
    """Every command as one types it, and the first paragraph of its docstring."""
    group = typer.main.get_command(app)
    pending = [("", group)]
    while pending:
        path, command = pending.pop()
        for name, child in getattr(command, "commands", {}).items():
            pending.append((f"{path} {name}".strip(), child))
            yield f"{path} {name}".strip(), " ".join((child.help or "").split("\n\n")[0].split())


@pytest.mark.parametrize(("command", "text"), list(commands()))
def test_the_list_of_commands_shows_each_ones_first_sentence_whole(command: str, text: str) -> None:
    parent = command.rpartition(" ")[0]
    wide = {"terminal_width": UNWRAPPED, "max_content_width": UNWRAPPED}
    listed = CliRunner().invoke(app, [*parent.split(), "--help"], **wide).output
    (line,) = (line for line in listed.splitlines() if line.startswith(f"  {command.rpartition(' ')[2]} "))
    assert text.startswith(line.split(None, 1)[1].rstrip(".")), line
    assert line.split(None, 1)[1] in (text, text.split(". ")[0] + "."), line
