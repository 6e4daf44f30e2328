"""The curl lines that docs/integration.md shows work as they stand."""

# ruff: noqa: E402 – what is imported below needs an extra

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="the extra threecad[station] is not installed")
pytest.importorskip("starlette.testclient", exc_type=ImportError, reason="httpx2 is not installed")

from stations import Station, picture
from threecad.station.safety import Guard
from threecad.station.service import make_app

DOCUMENT = Path(__file__).parent.parent / "docs" / "integration.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_lines_of_the_document_work_one_after_another(tmp_path: Path) -> None:
    block = DOCUMENT.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    (tmp_path / "part.png").write_bytes(picture(2, defect=True))
    station = Station(tmp_path / "store")
    app = make_app(station.line, Guard())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        here = f"http://127.0.0.1:{listening.getsockname()[1]}"
        for line in block.splitlines():
            command = shlex.split(line.replace("http://127.0.0.1:8000", here))
            done = subprocess.run([*command, "-S"], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, (line, done.stderr)
        server.should_exit = True
        thread.join()
    assert (tmp_path / "overlay.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert [row.content["answer"] for row in station.store.notes("answer")] == ["defect", None]
    station.close()
