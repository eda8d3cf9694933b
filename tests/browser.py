"""A headless Chromium, driven through its own debugging pipe."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0


def find_chromium() -> str | None:
    """The browser of this machine, if it has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, reader: asyncio.StreamReader, writer: Any) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count(1)
        self._session = ""
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loads = 0
        self._loaded = asyncio.Condition()
        self.problems: list[str] = []
        """What the page complained of: scripts' errors, and what its security policy kept out."""

    async def listen(self) -> None:
        """Takes in what the browser says, until it ends."""
        while line := await self._reader.readuntil(b"\0"):
            told = json.loads(line[:-1])
            if "id" in told:
                future = self._answers.pop(told["id"])
                if not future.done():
                    future.set_result(told)
            elif told["method"] == "Page.loadEventFired":
                async with self._loaded:
                    self._loads += 1
                    self._loaded.notify_all()
            elif told["method"] == "Log.entryAdded":
                self.problems.append(told["params"]["entry"]["text"])
            elif told["method"] == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(told["params"]))

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        request: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(request).encode() + b"\0")
        async with asyncio.timeout(PATIENCE_S):
            told = await answer
        assert "error" not in told, told
        return told["result"]

    async def attach(self) -> None:
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Sets the window's size in CSS pixels, and whether the user likes it dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def go(self, url: str) -> None:
        """Opens a page."""
        async with self._loading():
            await self.call("Page.navigate", url=url)

    async def click(self, selector: str) -> None:
        """Clicks what leads to another page."""
        async with self._loading():
            found = await self.run(f"(e => e && (e.click(), true))(document.querySelector({json.dumps(selector)}))")
            assert found, f"there is no {selector}"

    async def fill(self, selector: str, text: str) -> None:
        """Writes into a field, as keys do."""
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def run(self, script: str) -> Any:
        """What a script comes to."""
        return (await self.call("Runtime.evaluate", expression=script, returnByValue=True))["result"].get("value")

    async def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        box = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": box["width"], "height": box["height"], "scale": 1}
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    @contextlib.asynccontextmanager
    async def _loading(self) -> AsyncIterator[None]:
        before = self._loads
        yield
        async with asyncio.timeout(PATIENCE_S), self._loaded:
            await self._loaded.wait_for(lambda: self._loads > before)


@contextlib.asynccontextmanager
async def open_browser(chromium: str) -> AsyncIterator[Browser]:
    """A browser with nothing in its memory."""
    to_read, to_write = os.pipe(), os.pipe()  # the browser reads from the first and writes to the second
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        # The pipe's ends must be descriptors 3 and 4.
        command = f'exec "$0" "$@" 3<&{to_read[0]} 4>&{to_write[1]}'
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            command,
            chromium,
            *options,
            "--remote-debugging-pipe",
            f"--user-data-dir={home}",
            "--disable-background-networking",
            "--no-first-run",
            pass_fds=(to_read[0], to_write[1]),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
        )
        os.close(to_read[0])
        os.close(to_write[1])
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=64 << 20)
        reading, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(to_write[0], "rb")
        )
        writing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(to_read[1], "wb"))
        browser = Browser(reader, writing)
        listening = asyncio.create_task(browser.listen())
        try:
            await browser.attach()
            yield browser
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            writing.close()
            reading.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
