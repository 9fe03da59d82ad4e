"""One page's stream: pictures and commands in, frames out, in a thread of its own. Runs without torch.

Nothing piles up. Of the pictures that wait, the oldest is dropped for the newest, so that what is shown stays close to
now; a source of the server's own is read no faster than it plays.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from export.bundle import Manifest, load_manifest
from export.convert import Picture
from export.driving import Driven
from export.engines import AUTO, available_candidates, parse_engine
from export.interpolation import NETWORK_METHOD, open_network
from export.live.brush import Overlay
from export.live.pictures import Condition, ConditionPictures, Reader
from export.live.protocol import (
    Clear,
    Command,
    FrameMessage,
    Hold,
    PictureMessage,
    Restart,
    Settings,
    Source,
    Stroke,
    Undo,
    jpeg_size,
    pack_frame,
)
from export.runtime import open_bundle
from export.stream import ConditionMap, DeliveredFrame, Stream
from fastv2v.errors import ConfigError, DataError, FastV2VError, MediaError
from interpolate.motion import Grade

log = logging.getLogger(__name__)

PAGE: Final = "page"
"""The source of pictures that the page sends: its camera or a video it plays."""

_WAITING: Final = 2
_COMMANDS: Final = 256
_STATS_S: Final = 1.0
_IDLE_S: Final = 0.5
_REMEMBERED: Final = 256

SourceMaker = Callable[[], Iterator[Condition]]
"""Begins a source of the server's from its first condition. An iterator that ends is begun again; one with a method
``close`` is closed when it is no longer wanted."""
Emit = Callable[[bytes | str], None]
"""Takes a message for the page, in the session's thread; must not block."""


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """What can be switched while a stream runs."""

    engine: str = AUTO
    """``auto``, or NAME:PRECISION."""
    gap: int | None = None
    """Frames from keyframe to keyframe; None leaves the choice to the bundle's policy."""
    grade: str | None = None
    """How frames between are made: ``blend``, a grade of motion estimation, or ``network``; None as in the bundle."""
    causal: bool = False
    """Each frame at once, without waiting for the next keyframe."""


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How a bundle is run for a page."""

    threads: int | None = None
    """CPU threads of the engine; all by default."""
    max_pixels: int = 4_194_304
    """Pixels of the largest picture that is decoded."""
    quality: int = 85
    """JPEG quality of what the page is shown, 1 to 100."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"threads must be at least 1, got {self.threads}")
        if self.max_pixels < 4096 or not 1 <= self.quality <= 100:
            raise ConfigError(f"max_pixels is 4096 or more and quality lies in 1 to 100, got {self}")


class LiveBundle:
    """A bundle and what may drive it, shared by all pages.

    Args:
        folder: the bundle.
        sources: what the server has to offer, by name.
        new_reader: makes what reads the pictures of one page; None where none can be read.
        unreadable: why none can, for people.
        seed_frame: real frame that every stream begins with, uint8 RGB (H, W, 3) of the bundle's size.
        config: how it is run.
        opener: opens the bundle's stream with an engine; ``export.runtime.open_bundle`` by default.

    Raises:
        BundleError: if the bundle is damaged.
    """

    def __init__(
        self,
        folder: Path,
        sources: Mapping[str, SourceMaker],
        new_reader: Callable[[], Reader] | None = None,
        *,
        unreadable: str = "",
        seed_frame: NDArray[np.uint8] | None = None,
        config: LiveConfig | None = None,
        opener: Callable[..., Stream] = open_bundle,
    ) -> None:
        self.folder, self.manifest = Path(folder), load_manifest(Path(folder))
        self.sources, self.new_reader, self.unreadable = dict(sources), new_reader, unreadable
        self.seed_frame = seed_frame
        self._example = None if new_reader is None else new_reader()
        self.config = config or LiveConfig()
        self._opener = opener
        self.engines = (AUTO, *(f"{c.engine}:{c.precision}" for c in available_candidates(self.folder)))
        has_network = self.manifest.interpolation["method"] == NETWORK_METHOD
        self.grades = ("blend", *get_args(Grade), *((NETWORK_METHOD,) if has_network else ()))

    def check(self, settings: LiveSettings) -> None:
        """Refuse settings that this bundle does not offer.

        Raises:
            ConfigError: naming what it offers.
        """
        if settings.engine not in self.engines:
            raise ConfigError(f"engine is one of {', '.join(self.engines)}")
        if settings.grade is not None and settings.grade not in self.grades:
            raise ConfigError(f"interpolation is one of {', '.join(self.grades)}")

    def open(self, settings: LiveSettings) -> Stream:
        """A stream with these settings.

        Raises:
            FastV2VError: if it cannot be opened so.
        """
        self.check(settings)
        engine, precision = parse_engine(settings.engine)
        opened = self._opener(self.folder, engine=engine, precision=precision, threads=self.config.threads)
        return self.with_settings(opened, settings)

    def with_settings(self, opened: Stream, settings: LiveSettings) -> Stream:
        """Another stream on the engine of one, which is closed.

        Raises:
            FastV2VError: if the settings contradict each other.
        """
        manifest = self.manifest
        if settings.gap is not None or (settings.causal and manifest.keyframes["policy"] == "adaptive"):
            gap = settings.gap or int(manifest.keyframes["gap"] or 1)
            manifest = replace(manifest, keyframes={"policy": "uniform", "gap": gap})
        method = settings.grade or manifest.interpolation["method"]
        if settings.grade == "blend":
            manifest = replace(manifest, interpolation={"method": "blend"})
        elif settings.grade is not None and settings.grade != NETWORK_METHOD:
            manifest = replace(manifest, interpolation={"method": "dis", "grade": settings.grade})
        network = open_network(self.folder, self.manifest, self.config.threads) if method == NETWORK_METHOD else None
        made = Stream(opened.steps, manifest, causal=settings.causal, network=network, seed_frame=self.seed_frame)
        opened.close()
        return made

    def describe(self) -> dict[str, Any]:
        """What the page has to know, as values that JSON has."""
        manifest, spec = self.manifest, self.manifest.condition
        colours = ConditionPictures(manifest).palette.tolist() if spec.kind == "labels" else []
        names, reader = spec.class_names, self._example
        return {
            "type": "hello",
            "name": manifest.name,
            "condition": spec.describe(),
            "size": list(manifest.size),
            "fps": manifest.fps,
            "gap": manifest.keyframes["gap"],
            "policy": manifest.keyframes["policy"],
            "classes": [{"name": name, "color": colour} for name, colour in zip(names, colours, strict=False)],
            "engines": list(self.engines),
            "grades": list(self.grades),
            "sources": [*self.sources],
            "pictures": self.new_reader is not None,
            "unreadable": self.unreadable,
            "whole": reader is not None and reader.is_whole,
            "wanted": list(manifest.size if reader is None else reader.wanted),
            "warn_above": None if reader is None else reader.warn_above,
            "notes": [] if reader is None else reader.notes,
            "guidance": spec.guidance_levels > 0,
        }


class _Given(NamedTuple):
    """A condition on its way through the stream."""

    number: int
    time_ms: float
    arrived: float
    shown: bytes
    reach: float | None
    is_held: bool
    is_guided: bool


_Work = (
    tuple[Literal["command"], Command]
    | tuple[Literal["picture"], tuple[PictureMessage, float]]
    | tuple[Literal["source", "held", "nothing"], None]
)


class LiveSession:
    """Runs one page's stream until it is closed.

    Args:
        bundle: what is run.
        emit: takes what the page shall be sent.
    """

    def __init__(self, bundle: LiveBundle, emit: Emit) -> None:
        self._bundle, self._emit = bundle, emit
        self._changed = threading.Condition()
        self._pictures: deque[tuple[PictureMessage, float]] = deque()
        self._commands: deque[Command] = deque()
        self._is_closed = False
        self._dropped = 0
        self._settings = LiveSettings()
        self._source = PAGE
        self._conditions: Iterator[Condition] | None = None
        self._reader: Reader | None = None
        self._held = False
        self._latest: Condition | None = None
        self._due = 0.0
        self._given: dict[int, _Given] = {}
        self._view = ConditionPictures(bundle.manifest)
        spec = bundle.manifest.condition
        self._overlay = Overlay(bundle.manifest.size, spec.num_classes) if spec.kind == "labels" else None
        self._counted_since, self._counted = time.perf_counter(), 0
        self._last_error = ""
        self._thread = threading.Thread(target=self._run, name="live session", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def give(self, message: PictureMessage) -> None:
        """Take a picture of the page; the oldest that waits is dropped where there are too many."""
        with self._changed:
            if len(self._pictures) == _WAITING:
                self._pictures.popleft()
                self._dropped += 1
            self._pictures.append((message, time.perf_counter()))
            self._changed.notify_all()

    def tell(self, command: Command) -> None:
        """Take a command.

        Raises:
            DataError: if too many wait already.
        """
        with self._changed:
            if len(self._commands) == _COMMANDS:
                raise DataError("commands come faster than they can be carried out; slow down")
            self._commands.append(command)
            self._changed.notify_all()

    def close(self, wait_s: float = 10.0) -> None:
        """Stop after the present keyframe; what is not finished is lost.

        Args:
            wait_s: seconds to wait until it has stopped.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if wait_s and self._thread.is_alive():
            self._thread.join(wait_s)

    @property
    def is_running(self) -> bool:
        """Whether its thread works."""
        return self._thread.is_alive()

    def _run(self) -> None:
        stream: Stream | None = None
        try:
            stream = self._bundle.open(self._settings)
            self._say_state(stream)
            while (work := self._next()) is not None:
                stream = self._guarded(stream, work)
                self._say_stats(stream)
        except FastV2VError as error:
            self._say("error", message=str(error), final=True)
        except Exception:
            # A defect must not take the server along; the page is told and the log has the rest.
            log.exception("a live session ended")
            self._say("error", message="the stream failed on the server; its log says why", final=True)
        finally:
            self._end_source()
            self._end_reader()
            if stream is not None:
                stream.close()

    def _next(self) -> _Work | None:
        """What to do now; waits where there is nothing. None: the session was closed."""
        with self._changed:
            while not self._is_closed:
                if self._commands:
                    return "command", self._commands.popleft()
                now = time.perf_counter()
                is_playing = self._held or self._conditions is not None
                if is_playing and now >= self._due:
                    # A source that cannot keep up plays slower; it is not made up for.
                    self._due = max(self._due + 1 / self._bundle.manifest.fps, now)
                    return ("held" if self._held else "source"), None
                if not is_playing and self._pictures:
                    return "picture", self._pictures.popleft()
                if is_playing:
                    self._changed.wait(self._due - now)
                elif not self._changed.wait(_IDLE_S):
                    return "nothing", None
        return None

    def _guarded(self, stream: Stream, work: _Work) -> Stream:
        """Do one thing; where it is refused, the page is told and the stream goes on."""
        try:
            if work[0] == "command":
                return self._obey(stream, work[1])
            if work[0] != "nothing":
                self._push(stream, work)
                if self._last_error:
                    self._say("error", message="", final=False)
                self._last_error = ""
        except FastV2VError as error:
            if work[0] == "command":
                self._say("error", message=str(error), final=False)
                self._say_state(stream)  # the page shows what it asked for
                return stream
            if str(error) != self._last_error:  # not thirty times a second
                self._say("error", message=str(error), final=False)
            self._last_error = str(error)
            if work[0] == "source" and not isinstance(error, DataError):  # the next picture may be better
                self._end_source()
                self._source = PAGE
                self._say_state(stream)
        return stream

    def _obey(self, stream: Stream, command: Command) -> Stream:
        if isinstance(command, Settings):
            stream = self._switch(stream, command)
        elif isinstance(command, Source):
            self._open_source(command.name)
            stream.restart(self._bundle.seed_frame)
        elif isinstance(command, Hold):
            self._held = command.on and self._latest is not None
            self._due = 0.0
            with self._changed:
                self._pictures.clear()  # what waited meanwhile is old
        elif isinstance(command, Restart):
            self._end_reader()  # a driver is got to know anew too
            stream.restart(self._bundle.seed_frame)
        elif isinstance(command, Stroke | Undo | Clear):
            self._paint(command)
        self._given.clear() if stream.num_taken == 0 else None
        if not isinstance(command, Stroke):
            self._say_state(stream)
        return stream

    def _paint(self, command: Stroke | Undo | Clear) -> None:
        if self._overlay is None:
            raise DataError("this bundle has no label maps to paint on")
        if isinstance(command, Stroke):
            self._overlay.add(command)
        elif isinstance(command, Undo):
            self._overlay.undo()
        else:
            self._overlay.clear()

    def _switch(self, stream: Stream, wanted: Settings) -> Stream:
        """The stream with other settings; what is asked for and cannot be leaves the old one as it is."""
        given = {name: value for name, value in asdict(wanted).items() if value is not None}
        settings = replace(self._settings, **given)
        if settings == self._settings:
            return stream  # an empty wish asks for the state
        self._bundle.check(settings)
        if settings.engine == self._settings.engine:
            made = self._bundle.with_settings(stream, settings)
        else:
            made = self._bundle.open(settings)
            stream.close()
        self._settings = settings
        return made

    def _open_source(self, name: str) -> None:
        if name != PAGE and name not in self._bundle.sources:
            raise DataError(f"there is no source {name!r}; there are {', '.join((PAGE, *self._bundle.sources))}")
        self._end_source()
        self._end_reader()
        self._held, self._latest = False, None
        self._source = PAGE
        with self._changed:
            self._pictures.clear()
        if name != PAGE:
            self._conditions = self._bundle.sources[name]()
            self._source, self._due = name, 0.0

    def _end_source(self) -> None:
        close = getattr(self._conditions, "close", None)
        self._conditions = None
        if close is not None:
            close()

    def _end_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None

    def _push(self, stream: Stream, work: _Work) -> None:
        number, time_ms, arrived = 0, 0.0, time.perf_counter()
        if work[0] == "picture":
            message, arrived = work[1]
            number, time_ms = message.number, message.time_ms
            self._latest = self._read(message)
        elif work[0] == "source":
            self._latest = self._following()
        assert self._latest is not None  # only a condition that was there is held
        driven = self._latest if isinstance(self._latest, Driven) else None
        condition = self._painted(self._latest if driven is None else driven.condition)  # type: ignore[arg-type]
        index = stream.num_taken
        frames = stream.push(condition)
        shown = _jpeg(self._view(condition), self._bundle.config.quality)
        reach, is_held = (None, False) if driven is None else (driven.reach, driven.is_held)
        # Frames of a keyframe that has not come yet are remembered; more than a few gaps never wait.
        self._given[index] = _Given(number, time_ms, arrived, shown, reach, is_held, condition.points is not None)
        if len(self._given) > _REMEMBERED:
            self._given.pop(min(self._given))
        for item in frames:
            self._send(item)

    def _send(self, item: DeliveredFrame) -> None:
        given = self._given.pop(item.index, None)
        if given is None:
            return
        delay_ms = 1000 * (time.perf_counter() - given.arrived)
        jpeg = _jpeg(item.frame, self._bundle.config.quality)
        message = FrameMessage(
            item.index, given.number, given.time_ms, delay_ms, item.is_keyframe, given.shown, jpeg,
            given.reach, given.is_held, given.is_guided,
        )  # fmt: skip
        self._counted += 1
        self._emit(pack_frame(message))

    def _read(self, message: PictureMessage) -> Condition:
        if self._bundle.new_reader is None:
            raise ConfigError(self._bundle.unreadable)
        if self._reader is None:
            self._reader = self._bundle.new_reader()
        return self._reader(decode_picture(message.jpeg, self._bundle.config.max_pixels))

    def _following(self) -> Condition:
        """The next condition of the server's source, which begins again at its end."""
        assert self._conditions is not None
        condition = next(self._conditions, None)
        if condition is None:
            self._end_source()
            self._conditions = self._bundle.sources[self._source]()
            condition = next(self._conditions, None)
        if condition is None:
            raise MediaError(f"the source {self._source!r} is empty")
        return condition

    def _painted(self, condition: ConditionMap) -> ConditionMap:
        if self._overlay is None or condition.labels is None:
            return condition
        instances = condition.instances
        return replace(
            condition,
            labels=self._overlay.over(condition.labels),
            instances=None if instances is None else self._overlay.over(instances),
        )

    def _say(self, kind: str, **content: Any) -> None:
        self._emit(json.dumps({"type": kind, **content}))

    def _say_state(self, stream: Stream) -> None:
        settings = asdict(self._settings)
        settings["gap"] = settings["gap"] or stream.manifest.keyframes["gap"]
        settings["grade"] = settings["grade"] or _grade(stream.manifest)
        strokes = 0 if self._overlay is None else self._overlay.num_strokes
        self._say(
            "state",
            **settings,
            running=stream.engine_name,
            source=self._source,
            held=self._held,
            strokes=strokes,
            waits=stream.frames_waited,
        )

    def _say_stats(self, stream: Stream) -> None:
        now = time.perf_counter()
        if now - self._counted_since < _STATS_S:
            return
        stats = stream.stats
        self._say(
            "stats",
            fps=round(self._counted / (now - self._counted_since), 2),
            dropped=self._dropped,
            keyframes=stats.keyframes,
            frames=stats.frames,
            keyframe_ms=round(1000 * stats.synthesis_s / max(1, stats.keyframes), 2),
            fill_ms=round(1000 * stats.fill_s / max(1, stats.frames), 2),
        )
        self._counted_since, self._counted = now, 0


def _grade(manifest: Manifest) -> str:
    method = str(manifest.interpolation["method"])
    return str(manifest.interpolation.get("grade", "fast")) if method == "dis" else method


def decode_picture(jpeg: bytes, max_pixels: int) -> Picture:
    """Decode a JPEG whose size was looked at first.

    Args:
        jpeg: baseline JPEG.
        max_pixels: how large it may be.

    Returns:
        RGB, (H, W, 3).

    Raises:
        DataError: if it is too large, or broken.
    """
    height, width = jpeg_size(jpeg)
    if height * width > max_pixels or min(height, width) < 8:
        raise DataError(
            f"a picture of {width}x{height} pixels is not taken; send 8 pixels a side to {max_pixels} in all"
        )
    try:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise DataError("a JPEG picture cannot be decoded; send it again") from error
    if picture is None or picture.shape != (height, width, 3):
        raise DataError("a JPEG picture cannot be decoded; send it again")
    return picture.astype(np.uint8, copy=False)


def _jpeg(picture: NDArray[np.uint8], quality: int) -> bytes:
    """JPEG of an RGB picture."""
    is_made, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_made:
        raise DataError("a frame could not be encoded as JPEG; use an OpenCV built with JPEG")
    return data.tobytes()
