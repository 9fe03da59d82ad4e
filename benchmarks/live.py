"""The live page in a real browser, and among clients that misbehave: ``python -m benchmarks.live BUNDLE``.

Starts ``fastv2v live`` and a headless Chromium whose camera is fed from a video, asks the page for what it shows,
paints, and takes pictures of the page. With ``--hostile``, clients meanwhile send rubbish, stall, flood and come again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from export.live.protocol import PictureMessage, pack_picture, unpack_frame
from fastv2v.errors import ConfigError, MediaError, MissingExtraError

_READ: Final = """JSON.stringify({fps: +document.getElementById("fps").textContent || 0,
 delay: +document.getElementById("delay").textContent || 0, dropped: +document.getElementById("dropped").textContent,
 heap: performance.memory ? performance.memory.usedJSHeapSize : 0,
 message: document.getElementById("message").hidden ? "" : document.getElementById("message").textContent,
 name: document.getElementById("about").textContent})"""


@dataclass(frozen=True, kw_only=True)
class LiveBenchmark:
    """Measure the live page of a bundle in a headless browser."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """Bundle folder, NAME.v2v."""
    video: Path | None = None
    """Video that the browser's camera shows; the server's first source by default."""
    minutes: float = 1.0
    """How long to measure."""
    hostile: bool = False
    """Let clients misbehave meanwhile, and compare the rate of a good one with and without them."""
    pictures: Path | None = None
    """Folder for pictures of the page."""
    chromium: str = "chromium"
    """Browser to start."""
    port: int = 8731
    """Port of the server."""
    server: str = ""
    """Further options of fastv2v live, behind an equals sign and in quotes: --server="--seed-frame first.png"."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 600:
            raise ConfigError(f"minutes lie between 0 and 600, got {self.minutes}")


@contextlib.contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program, ended with the block."""
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


async def until(found: Any, what: str, log: Path, seconds: float = 90.0) -> Any:
    """Ask again and again until something is there.

    Raises:
        MediaError: if it does not come.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if (value := found()) is not None:
                return value
        await asyncio.sleep(0.25)
    raise MediaError(f"{what} did not start: {log.read_text(errors='replace')[-500:]}")


def resident_mb(pid: int) -> float:
    """Memory that a process holds, in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    return int(found.group(1)) / 1024 if found else 0.0


class Browser:
    """A page of a Chromium, asked through its DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers = socket, itertools.count(1)

    async def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one call.

        Raises:
            MediaError: if the browser refuses it.
        """
        number = next(self._numbers)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == number:
                if "error" in answer:
                    raise MediaError(f"the browser refused {method}: {answer['error'].get('message')}")
                return dict(answer["result"])

    async def run(self, script: str) -> Any:
        """The value of a script."""
        result = await self.ask("Runtime.evaluate", expression=script, userGesture=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise MediaError(f"the page failed: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def picture(self, path: Path, width: int, height: int, *, dark: bool = False) -> None:
        """Write a picture of the whole page at a size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.ask("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.ask("Emulation.setDeviceMetricsOverride", **size)
        await asyncio.sleep(1.5)
        made = await self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(made["data"]))

    async def drag(self, selector: str, path: list[tuple[float, float]]) -> None:
        """Move the pressed mouse over an element, along points in parts of it."""
        box = await self.run(f"JSON.stringify(document.querySelector('{selector}').getBoundingClientRect())")
        left, top, width, height = (json.loads(box)[key] for key in ("left", "top", "width", "height"))
        kinds = ["mousePressed", *["mouseMoved"] * (len(path) - 1), "mouseReleased"]
        for kind, (x, y) in zip(kinds, [*path, path[-1]], strict=True):
            at = {"x": left + x * width, "y": top + y * height, "button": "left", "buttons": 1, "clickCount": 1}
            await self.ask("Input.dispatchMouseEvent", type=kind, **at)
            await asyncio.sleep(0.03)


async def drive(args: LiveBenchmark, folder: Path, server: int, websockets: Any) -> dict[str, Any]:
    """Open the page in a browser and measure it."""
    profile = folder / "profile"
    command = [
        args.chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "--use-fake-ui-for-media-stream", "--enable-precise-memory-info",
    ]  # fmt: skip
    if args.video is not None:
        feed = _feed(args.video, folder)
        command += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={feed}"]
    log = folder / "browser.log"
    with running([*command, f"http://localhost:{args.port}/"], log):
        opened = profile / "DevToolsActivePort"
        port = int((await until(lambda: opened.read_text().splitlines() or None, "Chromium", log))[0])
        target = await asyncio.to_thread(_page_of, port, args.port)
        async with websockets.connect(target, max_size=None) as socket:
            return await _measure(args, Browser(socket), server)


def _page_of(port: int, own: int) -> str:
    """The DevTools address of our page."""
    from urllib.request import urlopen

    for _ in range(60):
        with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            for tab in json.load(answer):
                if f":{own}/" in tab["url"]:
                    return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.5)
    raise MediaError("the browser did not open the page")


def _feed(video: Path, folder: Path) -> Path:
    """Twenty seconds of a video as Chromium's fake camera reads them."""
    import imageio_ffmpeg

    feed = folder / "camera.mjpeg"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-t", "20", "-an", "-r", "30"]
    command += ["-vf", "scale=-2:480", "-q:v", "3", "-f", "mjpeg", str(feed)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise MediaError(f"{video}: {done.stderr.decode(errors='replace').strip()}")
    return feed


async def _measure(args: LiveBenchmark, browser: Browser, server: int) -> dict[str, Any]:
    end, is_there = time.monotonic() + 60, False
    while not is_there:
        if time.monotonic() > end:
            raise MediaError("the page did not reach the server within a minute")
        await asyncio.sleep(0.5)
        with contextlib.suppress(MediaError):  # a page that still loads has nowhere to run a script
            is_there = bool(await browser.run("typeof state === 'object' && state.hello !== null"))
    if args.video is not None:
        await browser.run("choose('camera')")
    await asyncio.sleep(6)
    seen: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * args.minutes
    while time.monotonic() < end:
        await asyncio.sleep(1)
        seen.append(json.loads(await browser.run(_READ)) | {"server_mb": resident_mb(server)})
    has_brush = await browser.run("!document.getElementById('brush').hidden")
    if args.pictures is not None:
        await browser.picture(args.pictures / "desktop.png", 1280, 900)
    painted = await _paint(browser) if has_brush else None
    if args.pictures is not None:
        await browser.picture(args.pictures / "desktop-dark.png", 1280, 900, dark=True)
        await browser.picture(args.pictures / "phone.png", 390, 844)
    third = max(1, len(seen) // 3)
    parts = seen[:third], seen[-third:]
    return {
        "fps": statistics.median(one["fps"] for one in seen),
        "delay_ms": statistics.median(one["delay"] for one in seen),
        "dropped": seen[-1]["dropped"],
        # Of the first and of the last third: what grows would show.
        "server_mb": [round(statistics.median(one["server_mb"] for one in part)) for part in parts],
        "page_mb": [round(statistics.median(one["heap"] for one in part) / 2**20, 1) for part in parts],
        "messages": sorted({one["message"] for one in seen if one["message"]}),
        "pixels_painted": painted,
    }


async def _paint(browser: Browser) -> int:
    """Paint a stroke on a held frame; how many pixels of the delivered frame changed by it."""
    look = """(() => { const c = document.getElementById('output');
      return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).join(); })()"""
    await browser.run("send('hold', {on: true})")
    await asyncio.sleep(3)
    before = [int(x) for x in (await browser.run(look)).split(",")]
    await browser.run("chooseClass(state.hello.classes.length > 8 ? 8 : 0); setSize(24)")
    await browser.drag("#condition", [(0.3 + 0.04 * i, 0.6) for i in range(11)])
    await asyncio.sleep(3)
    after = [int(x) for x in (await browser.run(look)).split(",")]
    return sum(abs(a - b) > 24 for a, b in zip(before[::4], after[::4], strict=True))


async def good(port: int, seconds: float, websockets: Any, started: asyncio.Event | None = None) -> float:
    """Frames a second that a well-behaved client of the server's first source gets; it comes again until it is let in.

    Raises:
        MediaError: if it never is.
    """
    for _ in range(60):
        async with websockets.connect(f"ws://localhost:{port}/stream", max_size=None) as socket:
            await socket.send('{"type": "hello"}')
            hello = json.loads(await socket.recv())
            if hello["type"] == "hello":
                await socket.send(json.dumps({"type": "source", "name": hello["sources"][0]}))
                return await _rate(socket, seconds, started)
        await asyncio.sleep(0.5)
    raise MediaError("the server had no room for a client")


async def _rate(socket: Any, seconds: float, started: asyncio.Event | None) -> float:
    """Frames a second from the first one on."""
    count, began = -1, 0.0
    while count < 0 or time.monotonic() < began + seconds:
        message = await asyncio.wait_for(socket.recv(), 30)
        if isinstance(message, bytes):
            unpack_frame(message)
            count += 1
            if count == 0:
                began = time.monotonic()
                if started is not None:
                    started.set()
    return count / (time.monotonic() - began)


async def bad(kind: int, port: int, websockets: Any) -> None:
    """One client that misbehaves, once."""
    if kind == 7:
        with contextlib.suppress(OSError, TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /stream HTT")  # a request that never ends
            await asyncio.wait_for(reader.read(), 3)
            writer.close()
        return
    address, origin = f"ws://localhost:{port}/stream", "http://evil.example" if kind == 0 else None
    with contextlib.suppress(OSError, TimeoutError, websockets.exceptions.WebSocketException):
        async with websockets.connect(address, origin=origin, open_timeout=10, close_timeout=1) as socket:
            if kind == 1:
                await asyncio.sleep(3)  # says nothing
                return
            await socket.send('{"type": "hello"}')
            if kind == 2:
                await socket.send(b"x" * 3_000_000)
            elif kind == 3:
                for _ in range(2000):
                    await socket.send('{"type": "undo"}')
            elif kind == 4:
                await socket.send(pack_picture(PictureMessage(1, 0.0, b"\xff\xd8" + bytes(5000))))
            elif kind == 5:
                await socket.send("[" * 10_000)
            elif kind == 6:
                await socket.send('{"type": "source", "name": "built-in clip"}')
                await asyncio.sleep(3)  # takes nothing
                return
            await asyncio.wait_for(socket.recv(), 2)


async def besiege(port: int, seconds: float, websockets: Any, started: asyncio.Event) -> int:
    """Fifty misbehaving clients at once, again and again; how many came in all."""
    await started.wait()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        await asyncio.gather(*(bad(number % 8, port, websockets) for number in range(50)))
        count += 50
    return count


async def measure(args: LiveBenchmark) -> dict[str, Any]:
    """All of it.

    Raises:
        MissingExtraError: if the extra 'live' or the browser is not installed.
        MediaError: if server or browser do not start.
    """
    try:
        import websockets
    except ModuleNotFoundError as error:
        raise MissingExtraError("benchmarks.live needs the extra 'live': pip install 'fastv2v[live]'") from error
    if not args.hostile and shutil.which(args.chromium) is None:
        raise MissingExtraError(f"there is no browser {args.chromium}; install Chromium, or name it with --chromium")
    with tempfile.TemporaryDirectory(prefix="live-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        log = folder / "server.log"
        command = [sys.executable, "-m", "fastv2v.cli", "live", str(args.bundle), "--port", str(args.port)]
        with running([*command, *shlex.split(args.server)], log) as server:
            await until(lambda: _answers(args.port), "fastv2v live", log)
            if not args.hostile:
                return await drive(args, folder, server.pid, websockets)
            seconds = 60 * args.minutes / 2
            alone = await good(args.port, seconds, websockets)
            started = asyncio.Event()
            beside, clients = await asyncio.gather(
                good(args.port, seconds, websockets, started), besiege(args.port, seconds, websockets, started)
            )
            after = await good(args.port, 5, websockets)
            rates = {"fps_alone": alone, "fps_besieged": beside, "fps_after": after}
            return {**{name: round(rate, 1) for name, rate in rates.items()}, "bad_clients": clients,
                    "server_mb": round(resident_mb(server.pid))}  # fmt: skip


def _answers(port: int) -> bool:
    import socket

    socket.create_connection(("127.0.0.1", port), timeout=2).close()
    return True


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(tyro.cli(LiveBenchmark, description=LiveBenchmark.__doc__)))))
