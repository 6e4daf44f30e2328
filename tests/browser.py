"""Chromium, driven through its debugging pipe: enough to open pages, press keys, ask what they show, and look at them.

Nothing stands between a test and the browser that Debian ships: a library that drives browsers would bring its own.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
    "--window-size=1280,800",
)

AXE = Path(find_spec("axe_core_python").submodule_search_locations[0]) / "axe.min.js"  # type: ignore[union-attr,index]

_KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), " ": (" ", 32)}


class Browser:
    """One page of a headless browser."""

    def __init__(self, profile: Path, url: str) -> None:
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # The browser reads commands from descriptor 3 and writes answers to 4; the shell puts ours there.
        pipes = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", pipes, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
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
        text, code = _KEYS.get(key, (key if len(key) == 1 else "", 0))
        number = {"windowsVirtualKeyCode": code} if code else {}  # by which the browser itself knows Tab and Enter
        self._ask("Input.dispatchKeyEvent", type="keyDown", key=key, **({"text": text} if text else {}), **number)
        self._ask("Input.dispatchKeyEvent", type="keyUp", key=key, **number)

    def type(self, text: str) -> None:
        """Type into the field that has the focus."""
        self._ask("Input.insertText", text=text)

    def go(self, url: str) -> None:
        """Open another page and wait until it is there."""
        self.value("window.isOld = true")
        self._ask("Page.navigate", url=url)
        self.wait("!window.isOld && document.readyState === 'complete'")

    def screen(self, width: int, height: int, scheme: str = "light") -> None:
        """Look through a screen of this size in px, in light or dark colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self._ask("Emulation.setDeviceMetricsOverride", mobile=False, **size)
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """Keep what the screen shows as a PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot")["data"]))

    def violations(self) -> list[str]:
        """What axe finds fault with on this page, a line each."""
        self.value(AXE.read_text(encoding="utf-8"))
        found = self.value("axe.run().then((all) => all.violations)", is_promise=True)
        return [f"{one['id']}: {one['help']}: {node['html'][:120]}" for one in found for node in one["nodes"]]

    def value(self, expression: str, is_promise: bool = False) -> Any:
        """What an expression gives inside the page, or what it promises."""
        said = self._ask("Runtime.evaluate", expression=expression, awaitPromise=is_promise, returnByValue=True)
        assert not is_promise or "exceptionDetails" not in said, said
        return said["result"].get("value")

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
