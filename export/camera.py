"""Pictures of a camera, or of anything else that OpenCV opens, through a queue that cannot grow. Runs without torch.

A camera does not wait. Its pictures are read by a thread of their own; where the stream is slower than the camera, the
oldest picture that still waits is dropped for the newest, so that what is shown stays close to now. That is counted and
announced. Dropped pictures leave larger motion between the others.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.errors import ConfigError, MediaError

log = logging.getLogger(__name__)


class Capture(Protocol):
    """The part of ``cv2.VideoCapture`` that is used."""

    def isOpened(self) -> bool:  # noqa: N802
        """Whether there is such a camera."""
        ...

    def read(self) -> tuple[bool, Any]:
        """Whether a picture came, and it, (H, W, 3) BGR uint8."""
        ...

    def release(self) -> None:
        """Let go of it."""
        ...


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """How pictures wait between a camera and a stream."""

    capacity: int = 2
    """How many pictures wait at most."""
    when_full: Literal["drop_oldest", "wait"] | None = None
    """``drop_oldest``: for live pictures. ``wait``: read on when there is room, so that none is lost; a live camera
    then falls behind, and its driver drops pictures out of sight. None: ``wait`` for files, else ``drop_oldest``."""
    timeout_s: float = 10.0
    """Seconds without a picture after which a camera counts as stopped."""

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise ConfigError(f"capacity must be at least 1 picture, got {self.capacity}")
        if self.when_full not in ("drop_oldest", "wait", None):
            raise ConfigError(f"when_full is drop_oldest or wait, got {self.when_full!r}")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, got {self.timeout_s}")


@dataclass(frozen=True)
class CameraStats:
    """What became of a camera's pictures so far."""

    taken: int
    """Pictures the camera gave."""
    dropped: int
    """Those of them that were dropped because the stream was slower."""


def _opencv(source: int | str) -> Capture:
    return cv2.VideoCapture(source)


class Camera:
    """Iterates over the pictures of a camera, (H, W, 3) uint8 RGB each. Use it as a context manager, or close it.

    A file is read whole, and ends; OpenCV does not tell where one is damaged, ``fastv2v.video.read_video`` does. A
    camera or an address that ends has stopped: all pictures that still wait are handed over, then comes a
    ``MediaError``.

    Args:
        source: number of a camera (0 is the first), an address such as ``rtsp://...``, or a file that OpenCV opens.
        config: how pictures wait.
        open_capture: opens the source.

    Raises:
        MediaError: if it cannot be opened.
    """

    def __init__(
        self,
        source: int | str | Path,
        config: CameraConfig | None = None,
        *,
        open_capture: Callable[[int | str], Capture] = _opencv,
    ) -> None:
        self.config = config or CameraConfig()
        self._is_file = not isinstance(source, int) and Path(source).is_file()
        self._waits = (self.config.when_full or ("wait" if self._is_file else "drop_oldest")) == "wait"
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        """What messages call it."""
        self._capture = open_capture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            self._capture.release()
            raise MediaError(f"{self.name} cannot be opened; check its number or address, and that nobody else uses it")
        self._changed = threading.Condition()
        self._queue: deque[NDArray[np.uint8]] = deque()
        self._taken = self._dropped = 0
        self._failure: Exception | None = None
        self._is_closed = self._has_ended = False
        # A daemon, for some drivers never return from a read.
        self._thread = threading.Thread(target=self._read, name=self.name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Camera:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stats(self) -> CameraStats:
        """What became of its pictures so far."""
        with self._changed:
            return CameraStats(self._taken, self._dropped)

    def close(self) -> None:
        """Stop reading and let go of the camera; pictures that still wait are dropped, and iterators end."""
        with self._changed:
            is_first, self._is_closed = not self._is_closed, True
            self._queue.clear()
            self._changed.notify_all()
        self._thread.join(self.config.timeout_s)
        if is_first and self._dropped:
            dropped, taken = self._dropped, self._taken
            log.warning("%s: %d of %d pictures were dropped, as the stream was slower", self.name, dropped, taken)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Pictures in order, each once.

        Raises:
            MediaError: if the camera stops, or gives nothing for ``timeout_s``.
        """
        while (picture := self._next()) is not None:
            yield picture

    def _next(self) -> NDArray[np.uint8] | None:
        with self._changed:
            is_in_time = self._changed.wait_for(
                lambda: self._queue or self._has_ended or self._is_closed, self.config.timeout_s
            )
            if self._queue:
                self._changed.notify_all()
                return self._queue.popleft()
            if self._is_closed:
                return None
            if not is_in_time:
                raise MediaError(
                    f"{self.name} gave no picture for {self.config.timeout_s:g} seconds after {self._taken}; check its "
                    "connection, or allow it more time (timeout_s)"
                )
            if self._failure is not None:
                raise MediaError(f"{self.name} failed after {self._taken} pictures: {self._failure}") from self._failure
            if self._is_file and self._taken:
                return None
            raise MediaError(f"{self.name} stopped after {self._taken} pictures; check its connection and start again")

    def _read(self) -> None:
        """The thread: read until the source ends or nobody wants more."""
        try:
            while not self._is_closed:
                is_there, picture = self._capture.read()
                if not is_there:
                    break
                self._take(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
        except Exception as error:  # handed over to whoever iterates
            self._failure = error
        finally:
            self._capture.release()
            with self._changed:
                self._has_ended = True
                self._changed.notify_all()

    def _take(self, picture: NDArray[np.uint8]) -> None:
        with self._changed:
            self._taken += 1
            is_full = len(self._queue) == self.config.capacity
            if is_full and self._waits:
                self._changed.wait_for(lambda: len(self._queue) < self.config.capacity or self._is_closed)
            elif is_full:
                self._queue.popleft()
                self._dropped += 1
                if self._dropped == 1:
                    log.warning("%s is faster than the stream: its oldest waiting pictures are dropped", self.name)
            if not self._is_closed:
                self._queue.append(picture)
            self._changed.notify_all()
