"""What the documents show is true: Python blocks run, commands exist."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from threecad.benchmark.layouts import write_tables
from threecad.benchmark.rows import read_rows

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md")))]
WITH_TABLES = ["README.md", "docs/results.md", "docs/trials.md"]


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_blocks_run(document: str, tmp_path: Path) -> None:
    for block in blocks(document, "python"):
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_commands_and_options_that_documents_show_exist() -> None:
    from typer.main import get_command

    from threecad.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    shown = [
        shlex.split(line.partition("#")[0])
        for document in DOCUMENTS
        for block in blocks(document, "bash")
        for line in block.splitlines()
        if "threecad" in line
    ]
    assert shown
    for words in shown:
        command = commands[words[1]]
        if hasattr(command, "commands"):
            command = command.commands[words[2]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_files_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / document).parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_to_headings_lead_somewhere(document: str) -> None:
    """GitHub's anchors: small letters, hyphens for spaces, nothing else that is no word."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for file, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text):
        linked = ((ROOT / document).parent / file).read_text(encoding="utf-8") if file else text
        headings = re.findall(r"^#+ (.+)$", linked, flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


@pytest.mark.parametrize("document", WITH_TABLES)
def test_results_are_what_the_tool_prints_of_the_committed_rows(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    shown = re.findall(r"<!-- tables of (\S+) -->(.*?)<!-- end of tables -->", text, flags=re.DOTALL)
    assert shown
    for folder, tables in shown:
        assert tables.strip() and tables.strip() in write_tables(read_rows([ROOT / folder])), folder


def test_every_folder_of_committed_rows_is_shown_or_named() -> None:
    """A section that was lost takes its folder's name with it."""
    text = "".join((ROOT / document).read_text(encoding="utf-8") for document in WITH_TABLES)
    named = set(re.findall(r"<!-- tables of docs/(\S+) -->|\]\((results[\w-]*)/rows\)", text))
    folders = {rows.parent.name for rows in (ROOT / "docs").glob("*/rows")}
    assert folders == {one or other for one, other in named}


def test_the_order_of_methods_is_compared_on_the_committed_rows() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    folder, shown = re.findall(r"<!-- python bench/ordering.py (\S+) -->\n\n(.*?)\n\n", text, flags=re.DOTALL)[0]
    table = runpy.run_path(str(ROOT / "bench" / "ordering.py"))["table"]
    assert shown.splitlines() == list(table(ROOT / folder))


def test_tables_that_a_script_has_printed_have_its_headers() -> None:
    shown = [
        (script, tables)
        for document in DOCUMENTS
        for script, tables in re.findall(
            r"<!-- printed by python (bench/\w+\.py)[^>]*-->(.*?)<!-- end of what it printed -->",
            (ROOT / document).read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
    ]
    assert shown
    for script, tables in shown:
        words = (value for value in runpy.run_path(str(ROOT / script)).values() if isinstance(value, tuple))
        headers = {f"| {' | '.join(map(str, value))} |" for value in words}
        for table in re.split(r"\n\s*\n", tables.strip()):
            header, _, *rows = table.splitlines()
            assert header in headers, script
            assert rows and all(row.count(" | ") == header.count(" | ") for row in rows), script
