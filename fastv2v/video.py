"""Videos and pictures on disk, as 8-bit RGB arrays. Torch-free.

Videos go through the ffmpeg program that ``imageio-ffmpeg`` carries, streamed frame by frame, so that memory does not
grow with their length. Whatever is written appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.images import read_image, read_label
from fastv2v.errors import MediaError, MissingExtraError, ShapeError
from fastv2v.mark import SOURCE_TYPE, is_mark, mark_png, mark_text, mp4_box, png_mark

__all__ = [
    "VIDEO_SUFFIXES",
    "FfmpegProcess",
    "VideoInfo",
    "VideoWriter",
    "check_frame",
    "first_look",
    "frame_times",
    "probe_video",
    "read_image",
    "read_label",
    "read_mark",
    "read_video",
    "write_image",
    "write_video",
]

VIDEO_SUFFIXES: Final = (".mp4", ".mkv")
"""Extensions a video may be written under; any kind that ffmpeg knows can be read."""

_NEEDED: Final = (
    "video files need the packages ffmpeg-python and imageio-ffmpeg: pip install ffmpeg-python imageio-ffmpeg"
)
# Without a stated matrix, players guess one from the height and colours shift between them.
_BT709: Final = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709", "color_range": "tv"}


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds."""

    size: tuple[int, int]
    """(height, width) as shown, after any rotation that the file asks for."""
    fps: Fraction
    """Nominal frame rate, exact: 30000/1001 stays 30000/1001."""
    num_frames: int | None
    """Number of stored frames; None where the container does not list them (raw streams)."""
    duration_s: float
    """``num_frames / fps``, or 0 where the number is not known."""


class VideoWriter:
    """Writes a video frame by frame; use it as a context manager.

    The file appears when the block ends well. When the block ends with an exception nothing is left behind.

    * ``.mp4`` or ``.mkv``: H.264, 4:2:0, BT.709, index at the front so that browsers play it at once. These need even
      sizes: an odd height or width gains one repeated row or column.
    * ``lossless``: FFV1 for ``.mkv``, H.264 RGB for ``.mp4`` (which browsers do not play). Any size, exact pixels.

    Args:
        path: file to write; its folder is created.
        fps: frames per second.
        lossless: keep every pixel exactly.
        crf: quality of the lossy form, 0 (best) to 51.
        synthetic: state in the metadata that the pictures were made by a network (``read_mark``). Turn it off for
            recordings only.
        made_by: the bundle or run that made them, for the mark.

    Raises:
        MediaError: for an unknown extension, a nonsensical rate or quality, or when ffmpeg fails.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fps: float | Fraction,
        *,
        lossless: bool = False,
        crf: int = 18,
        synthetic: bool = True,
        made_by: str = "",
    ) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise MediaError(f"{self.path}: a video is written as {' or '.join(VIDEO_SUFFIXES)}; change the extension")
        if not 0 < fps < 1000:
            raise MediaError(f"{self.path}: the frame rate must lie between 0 and 1000 per second, got {fps}")
        if not 0 <= crf <= 51:
            raise MediaError(f"{self.path}: crf must lie in 0..51, got {crf}")
        self.num_frames = 0
        self._fps = Fraction(fps).limit_denominator(1001)
        self._lossless, self._crf = lossless, crf
        self._mark = mark_text(made_by) if synthetic else ""
        self._shape: tuple[int, ...] = ()
        self._temporary = self.path.with_name(f".{self.path.stem}.{uuid.uuid4().hex[:8]}{self.path.suffix}")
        self._process: FfmpegProcess | None = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame.

        Args:
            frame: RGB, (H, W, 3), 8-bit; every frame of a video has the size of the first.

        Raises:
            ShapeError: if it is no such array or of another size.
            MediaError: if ffmpeg stopped.
        """
        check_frame(frame, f"{self.path}: frame {self.num_frames}")
        if self._process is None:
            self._shape = frame.shape
            self._process = self._start(frame.shape[0], frame.shape[1])
        elif frame.shape != self._shape:
            raise ShapeError(f"{self.path}: frame {self.num_frames} is {frame.shape}, the first one was {self._shape}")
        pad_y, pad_x = (0, 0) if self._lossless else (frame.shape[0] % 2, frame.shape[1] % 2)
        if pad_y or pad_x:
            frame = np.pad(frame, ((0, pad_y), (0, pad_x), (0, 0)), mode="edge")
        self._process.write(frame)
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            MediaError: if no frame was written or ffmpeg failed.
        """
        if self._process is None:
            raise MediaError(f"{self.path}: a video needs at least one frame, none was given")
        try:
            self._process.finish()
            if self._mark and self.path.suffix.lower() == ".mp4":
                with self._temporary.open("ab") as file:
                    file.write(mp4_box(self._mark))
            os.replace(self._temporary, self.path)
        except OSError as error:
            raise MediaError(f"{self.path}: the video cannot be written ({error.strerror})") from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Stop and remove what was written so far; does nothing after ``close``."""
        if self._process is not None:
            self._process.kill()
            self._temporary.unlink(missing_ok=True)

    def _start(self, height: int, width: int) -> FfmpegProcess:
        options: dict[str, Any]
        if not self._lossless:
            height, width = height + height % 2, width + width % 2
            scale = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int"
            options = {"vcodec": "libx264", "crf": self._crf, "pix_fmt": "yuv420p", "vf": scale} | _BT709
        elif self.path.suffix.lower() == ".mkv":
            options = {"vcodec": "ffv1", "pix_fmt": "bgr0"}
        else:
            options = {"vcodec": "libx264rgb", "crf": 0, "pix_fmt": "rgb24"}
        if self.path.suffix.lower() == ".mp4":
            options["movflags"] = "+faststart"
        if self._mark:
            tags = {"comment": self._mark, "description": self._mark}
            if self.path.suffix.lower() == ".mkv":
                tags["digital_source_type"] = SOURCE_TYPE
            # ffmpeg-python gives an option once; the number makes equal ones differ and means nothing to ffmpeg.
            options |= {f"metadata:g:{i}": f"{key}={value}" for i, (key, value) in enumerate(tags.items())}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MediaError(f"{self.path}: its folder cannot be created ({error.strerror})") from error
        source = _ffmpeg().input("pipe:", f="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=_rate(self._fps))
        return FfmpegProcess(
            _ffmpeg().output(source, f"file:{self._temporary}", **options), str(self.path), stdin=subprocess.PIPE
        )


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[NDArray[np.uint8]],
    fps: float | Fraction,
    *,
    lossless: bool = False,
    crf: int = 18,
    synthetic: bool = True,
    made_by: str = "",
) -> int:
    """Write frames as a video; see ``VideoWriter`` for the formats.

    Args:
        path: ``.mp4`` or ``.mkv``.
        frames: RGB frames, each (H, W, 3) 8-bit; consumed one by one.
        fps: frames per second.
        lossless: keep every pixel exactly.
        crf: quality of the lossy form, 0 (best) to 51.
        synthetic: state in the metadata that the pictures were made by a network.
        made_by: the bundle or run that made them, for the mark.

    Returns:
        Number of frames written.

    Raises:
        MediaError: if the video cannot be written or there are no frames.
        ShapeError: if a frame is no 8-bit RGB picture or of another size than the first.
    """
    with VideoWriter(path, fps, lossless=lossless, crf=crf, synthetic=synthetic, made_by=made_by) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.num_frames


def read_video(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    stop_s: float | None = None,
    fps: Fraction | None = None,
    lenient: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """Read a video frame by frame, each stored frame once, turned upright.

    Args:
        path: any file ffmpeg can decode.
        start_s: where to begin, in seconds.
        stop_s: where to end, in seconds from the beginning of the file; its end by default.
        fps: a constant rate to bring frames to, by repeating and leaving out whole ones; by default none is.
        lenient: go on past damage, with whatever ffmpeg makes of it, instead of raising an error.

    Yields:
        RGB, (H, W, 3), 8-bit, writeable and owned by the caller.

    Raises:
        MediaError: at the first ``next`` if the file is missing, empty or holds no picture; later if it is damaged. How
            many of the last frames before the damage still come differs from run to run.
    """
    path = _existing(path)
    # A stream of PPM pictures states the size of each, so that nothing has to be asked beforehand.
    options: dict[str, Any] = {"f": "image2pipe", "vcodec": "ppm", "pix_fmt": "rgb24", "fps_mode": "passthrough"}
    if fps is not None:
        options["vf"] = f"fps={_rate(fps)}"
    part = {} if not start_s else {"ss": f"{start_s:.6f}"}
    part |= {} if stop_s is None else {"to": f"{stop_s:.6f}"}
    stream = _ffmpeg().output(_first_picture_stream(path, **part), "pipe:", **options)
    process = FfmpegProcess(stream, str(path), *(() if lenient else ("-xerror",)), stdout=subprocess.PIPE)
    is_empty = True
    try:
        while (frame := _read_ppm(process.stdout)) is not None:
            is_empty = False
            yield frame
        if not lenient or is_empty:
            process.finish()
    finally:
        process.kill()
    if is_empty:
        raise MediaError(f"{path}: the video holds no frame")


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Look at a video without decoding more than its first frame.

    Args:
        path: any file ffmpeg can decode.

    Returns:
        Size, rate, number of frames and duration.

    Raises:
        MediaError: if the file is missing, empty, damaged or holds no picture.
    """
    path = _existing(path)
    size, fps = first_look(path)
    num_frames = sum(not key.startswith("#") for key, _ in _frame_list(path, vcodec="copy"))
    return VideoInfo(size, fps, num_frames or None, float(num_frames / fps))


def first_look(path: str | os.PathLike[str]) -> tuple[tuple[int, int], Fraction]:
    """Size (height, width) and nominal frame rate of a video, from its first frame; what follows may be damaged.

    Raises:
        MediaError: if the file is missing, empty, or holds no picture at its beginning.
    """
    path = _existing(path)
    size, fps = None, Fraction(0)
    for key, value in _frame_list(path, vframes=1, fps_mode="cfr"):
        if key == "#dimensions 0":
            width, height = map(int, value.split("x"))
            size = height, width
        elif key == "#tb 0":  # the time base of decoded frames at a constant rate is one frame
            fps = 1 / Fraction(value)
        elif not key.startswith("#") and size is not None and fps:
            return size, fps
    raise MediaError(f"{path}: the file holds no picture that can be decoded")


def frame_times(path: str | os.PathLike[str]) -> NDArray[np.float64]:
    """When each stored frame of a video is shown, without decoding it; of a damaged one, as far as can be read.

    Args:
        path: any file ffmpeg can read.

    Returns:
        Seconds in order of display, (N,); empty where the container does not say.

    Raises:
        MediaError: if the file is missing, empty or holds no picture.
    """
    time_base, times = Fraction(1), []
    try:
        for key, value in _frame_list(_existing(path), vcodec="copy"):
            if key == "#tb 0":
                time_base = Fraction(value)
            elif not key.startswith("#"):
                fields = [field.strip() for field in key.split(",")]
                if len(fields) > 2 and fields[2].lstrip("-").isdigit():
                    times.append(int(fields[2]))
    except MediaError:
        if not times:
            raise
    return np.sort(np.array(times, np.float64)) * float(time_base)


def read_mark(path: str | os.PathLike[str]) -> str | None:
    """What a file says about itself: the mark that synthesised videos and PNG pictures of ours carry.

    Args:
        path: a PNG picture, or any video that ffmpeg can read.

    Returns:
        The sentence, with the bundle or run that made the pictures where it was given; None where there is no mark,
        which does not prove a recording.

    Raises:
        MediaError: if the file is missing or empty, or a video that cannot be read.
    """
    path = _existing(path)
    if path.suffix.lower() == ".png":
        return png_mark(path.read_bytes())
    process = FfmpegProcess(
        _ffmpeg().output(_ffmpeg().input(f"file:{path}"), "pipe:", f="ffmetadata"), str(path), stdout=subprocess.PIPE
    )
    try:
        listed = process.stdout.read().decode(errors="replace")
        process.finish()
    finally:
        process.kill()
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        text = re.sub(r"\\(.)", r"\1", value)
        if key.lower() == "comment" and is_mark(text):
            return text
    return None


def write_image(
    path: str | os.PathLike[str], rgb: NDArray[np.uint8], *, synthetic: bool = False, made_by: str = ""
) -> None:
    """Write a picture; its format follows from the extension (PNG keeps every pixel).

    Args:
        path: file to write; its folder is created.
        rgb: (H, W, 3), 8-bit.
        synthetic: mark a PNG picture as made by a network (``read_mark``).
        made_by: the bundle or run that made it, for the mark.

    Raises:
        ShapeError: if it is no such array.
        MediaError: if the extension is unknown or the file cannot be written.
    """
    path = Path(path)
    check_frame(rgb, str(path))
    try:
        is_done, data = cv2.imencode(path.suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise MediaError(f"{path}: no picture format has this extension; use .png or .jpg") from error
    if not is_done:
        raise MediaError(f"{path}: the picture could not be encoded")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = data.tobytes()
        if synthetic and path.suffix.lower() == ".png":
            content = mark_png(content, mark_text(made_by))
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        if temporary.exists():
            temporary.unlink()
        raise MediaError(f"{path}: the picture cannot be written ({error.strerror})") from error


def check_frame(frame: Any, where: str) -> None:
    """Refuse what is not an 8-bit RGB picture, (H, W, 3) with at least one pixel.

    Raises:
        ShapeError: naming ``where`` and what came instead.
    """
    is_array = isinstance(frame, np.ndarray)
    if not is_array or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        got = f"{frame.dtype} of shape {frame.shape}" if is_array else type(frame).__name__
        raise ShapeError(f"{where}: expected 8-bit RGB of shape (H, W, 3), got {got}")


def _ffmpeg() -> Any:
    """``ffmpeg-python``, which a deployment that reads and writes pictures only does without."""
    try:
        import ffmpeg
    except ModuleNotFoundError as error:
        raise MissingExtraError(_NEEDED) from error
    return ffmpeg


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"{path}: there is no such video file")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the video file is empty (0 bytes)")
    return path


def _first_picture_stream(path: Path, **options: Any) -> Any:
    # The prefix keeps a name with a colon, or one that looks like an address, a file name.
    return _ffmpeg().input(f"file:{path}", **options)["v:0"]


def _rate(fps: Fraction) -> str:
    return f"{fps.numerator}/{fps.denominator}"


def _frame_list(path: Path, **options: Any) -> Iterator[tuple[str, str]]:
    """Lines of ffmpeg's frame list: headers as (``#name``, value), then one line for each frame."""
    process = FfmpegProcess(
        _ffmpeg().output(_first_picture_stream(path), "pipe:", f="framecrc", **options),
        str(path),
        stdout=subprocess.PIPE,
    )
    try:
        for line in process.stdout:
            key, _, value = line.decode().partition(":")
            yield key.strip(), value.strip()
        process.finish()
    finally:
        process.kill()


def _read_ppm(stream: IO[bytes]) -> NDArray[np.uint8] | None:
    """The next picture of a stream of binary PPM files; None at its end or where it breaks off."""
    if not stream.readline():
        return None
    width, height = map(int, stream.readline().split())
    stream.readline()
    pixels = np.empty(height * width * 3, np.uint8)
    filled = 0
    while filled < pixels.size:
        count = stream.readinto(pixels[filled:].data)  # type: ignore[attr-defined]
        if not count:
            return None
        filled += count
    return pixels.reshape(height, width, 3)


class FfmpegProcess:
    """One run of ffmpeg; what it complains about goes to a file, since a full pipe would stop both sides.

    Args:
        stream: what to run, as ``ffmpeg-python`` describes it.
        name: the file or task, for messages.
        flags: further global options of ffmpeg.
        stdin: as for ``subprocess.Popen``.
        stdout: as for ``subprocess.Popen``.
        cwd: folder to run in.
    """

    def __init__(
        self,
        stream: Any,
        name: str,
        *flags: str,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.DEVNULL,
        cwd: str | None = None,
    ) -> None:
        self._name = name
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = _ffmpeg().compile(stream, cmd=[ffmpeg_program(), "-v", "error", *flags], overwrite_output=True)
        self._process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=self._complaints, cwd=cwd)

    @property
    def stdout(self) -> IO[bytes]:
        """What ffmpeg writes; only where ``stdout=subprocess.PIPE`` was asked for."""
        assert self._process.stdout is not None
        return self._process.stdout

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Send raw pixels; only where ``stdin=subprocess.PIPE`` was asked for.

        Raises:
            MediaError: if ffmpeg stopped.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError as error:
            raise self._error() from error

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            MediaError: if ffmpeg failed or complained: a file that breaks off is worth a complaint, yet status 0.
        """
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError as error:
                raise self._error() from error
        if self._process.wait() != 0 or self._complaints.tell():
            raise self._error()

    def kill(self) -> None:
        """End the process if it still runs, and let go of its pipes."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was still buffered belongs to a file that is being given up
        self._complaints.close()

    def _error(self) -> MediaError:
        self._process.wait()
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        why = re.sub(r"^\[[^]]*\] *", "", lines[0]) if lines else f"exit status {self._process.returncode}"
        if "matches no streams" in why:
            return MediaError(f"{self._name}: the file holds no picture stream; it is no video, or it was cut short")
        return MediaError(f"{self._name}: ffmpeg could not process the video ({why}); it may be damaged or cut short")


def ffmpeg_program() -> str:
    """Path of the ffmpeg that comes with ``imageio-ffmpeg``.

    Raises:
        MediaError: if there is none for this platform.
        MissingExtraError: if ``imageio-ffmpeg`` is not installed.
    """
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise MissingExtraError(_NEEDED) from error
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MediaError(f"no ffmpeg program was found: {error}") from error
