"""Drives a page in headless Chromium over DevTools: types, reads, takes screenshots."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import debian
from tests.patience import limit

NAMES = ("chromium", "chromium-browser", "chrome")
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
OPTIONS += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
OPTIONS += ["--disable-dev-shm-usage", "--password-store=basic", "--remote-debugging-port=0"]

OVERLAPS = """
(() => {
  const shown = (t) => t.getBoundingClientRect().width > 0;
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    if (!shown(svg)) continue;
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter(shown);
    const boxes = texts.map((t) => [t.textContent, t.getBoundingClientRect()]);
    boxes.forEach(([text, a], n) => {
      const label = svg.getAttribute('aria-label');
      if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1
          || a.bottom > frame.bottom + 1) found.push(`${label}: "${text}" leaves the drawing`);
      for (const [other, b] of boxes.slice(n + 1))
        if (a.left < b.right && b.left < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)
          found.push(`${label}: "${text}" on "${other}"`);
    });
  }
  for (const e of document.querySelectorAll('main *, header *')) {
    const box = e.getBoundingClientRect();
    if (box.right > innerWidth + 1 && !e.closest('.scroll, pre, svg'))
      found.push(`${e.tagName} ${e.textContent.slice(0, 40)} ends at ${box.right}`);
  }
  return found;
})()
"""
"""Lists texts that overlap in a drawing, leave it, or leave the page."""


class Page:
    """One tab. Waiting raises an error after `seconds`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any, seconds: float) -> None:
        self.loop, self.socket, self.seconds = loop, socket, limit(seconds)
        self.number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        return self.loop.run_until_complete(self._call(method, parameters))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json(
            {"id": self.number, "method": method, "params": parameters},
        )
        async with asyncio.timeout(self.seconds):
            while True:
                message = json.loads((await self.socket.receive()).data)
                if message.get("id") == self.number:
                    assert "error" not in message, message
                    return message["result"]

    def js(self, expression: str) -> Any:
        """Returns the value of an expression on the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def open(self, address: str, width: int = 1280, height: int = 900) -> None:
        """Opens a page, at a size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Page.navigate", url=address)
        self.wait("document.readyState == 'complete'")

    def wait(self, condition: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + self.seconds
        while not self.js(condition):
            assert time.monotonic() < end, f"still not: {condition}\n{self.text()[:2000]}"
            time.sleep(0.1)

    def text(self) -> str:
        """Returns the text of the page."""
        return self.js("document.body ? document.body.innerText : ''") or ""

    def type(self, selector: str, text: str) -> None:
        """Types a line into a field."""
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                text="\r" if kind == "keyDown" else "",
                windowsVirtualKeyCode=13,
            )

    def screenshot(self, path: Path) -> None:
        """Saves a screenshot of the visible part."""
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


def chromium() -> str:
    """Returns the browser's program, installed if possible; skips the test otherwise."""
    found = [name for name in NAMES if shutil.which(name)]
    if not found:
        reason = debian.why_not(NAMES[:1], "chromium", "fonts-dejavu-core")
        if reason:
            pytest.skip(reason)
    return (found or NAMES)[0]


@contextmanager
def page(seconds: float = 60) -> Iterator[Page]:
    """Opens a tab in a new browser; skips the test, with the reason, if there is none."""
    program = chromium()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [program, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
            loop = asyncio.new_event_loop()
            try:
                session, socket = loop.run_until_complete(_connect(Path(folder), seconds))
                try:
                    yield Page(loop, socket, seconds)
                finally:
                    loop.run_until_complete(session.close())
            finally:
                process.terminate()
                loop.close()


async def _connect(folder: Path, seconds: float) -> tuple[Any, Any]:
    said = folder / "DevToolsActivePort"
    async with asyncio.timeout(limit(seconds)):
        while not (said.is_file() and len(said.read_text().splitlines()) == 2):
            await asyncio.sleep(0.1)
        port = said.read_text().splitlines()[0]
        session = aiohttp.ClientSession()
        tabs: list[Any] = []
        while not tabs:
            async with session.get(f"http://127.0.0.1:{port}/json") as response:
                tabs = [tab for tab in await response.json() if tab["type"] == "page"]
            await asyncio.sleep(0.1)
        return session, await session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0)
