"""Chromium, driven through its debugging pipe: enough to open a page, press keys and ask what it shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")


class Browser:
    """One page of a headless browser."""

    def __init__(self, profile: Path, url: str) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=1280,800")
        # The browser reads commands from descriptor 3 and writes answers to 4; the shell puts ours there.
        pipes = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", pipes, "bash", str(CHROMIUM), *flags, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url=url)["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def press(self, key: str) -> None:
        """Press one key, by the name that scripts see."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def value(self, expression: str) -> Any:
        """What an expression gives inside the page."""
        return self._ask("Runtime.evaluate", expression=expression)["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Return once an expression is true inside the page."""
        deadline = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)

    def _ask(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        asked = {"id": self._number, "method": method, "params": values, **session}
        os.write(self._to, json.dumps(asked).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                got = os.read(self._from, 65536)
                assert got, "the browser has ended"
                self._rest += got
            one, _, self._rest = self._rest.partition(b"\0")
            said = json.loads(one)
            if said.get("id") == self._number:
                assert "error" not in said, said
                return dict(said["result"])
