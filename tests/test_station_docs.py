"""The curl lines that docs/integration.md shows work as they stand."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from stations import Station, answering, picture

DOCUMENT = Path(__file__).parent.parent / "docs" / "integration.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_document_work_one_after_another(tmp_path: Path) -> None:
    block = DOCUMENT.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    (tmp_path / "part.png").write_bytes(picture(2, defect=True))
    station = Station(tmp_path / "store")
    with answering(station) as here:
        for line in block.splitlines():
            command = shlex.split(line.replace("http://127.0.0.1:8000", here))
            done = subprocess.run([*command, "-S"], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "overlay.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert [row.content["answer"] for row in station.store.notes("answer")] == ["defect", None]
    station.close()
