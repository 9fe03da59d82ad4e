"""The doors to TensorRT and to the GPU: imported when asked for, and explained where they are missing. Needs torch."""

from __future__ import annotations

import functools
import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch

from export.device_step import current_gpu, record_graph
from export.engines import TENSORRT_INSTALL
from export.tensorrt_store import Gpu, Site, version_numbers
from fastv2v.errors import BundleError, ConfigError, MachineError, MissingExtraError

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)

_OLDEST = (10, 3, 0)

Replay = Callable[[], None]


class Runner(Protocol):
    """The GPU as an engine sees it: one stream, and graphs of work on it."""

    device: torch.device
    """Where buffers lie."""
    alignment: int
    """Bytes that addresses must be a multiple of."""

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it; never 0, the default stream, on which it waits for the whole device."""
        ...

    def on(self) -> AbstractContextManager[None]:
        """Queue torch's work on the stream, behind what the caller queued before; the caller's next comes after."""
        ...

    def capture(self, work: Callable[[], None]) -> Replay | None:
        """Record work as a graph, without its effects, and give what replays it; None where it cannot be recorded."""
        ...

    def wait(self) -> None:
        """Until all that was queued is done."""
        ...

    def describe(self) -> Gpu:
        """Which GPU it is."""
        ...


class CudaRunner:
    """A stream of its own on an NVIDIA GPU.

    Args:
        device: the GPU; by default torch's current one.

    Raises:
        ConfigError: if the device is none.
        MissingExtraError: if torch sees no NVIDIA GPU.
    """

    alignment = 256

    def __init__(self, device: torch.device | None = None) -> None:
        if not torch.cuda.is_available():
            raise MissingExtraError(
                "TensorRT needs an NVIDIA GPU and torch finds none: install NVIDIA's driver (nvidia-smi then lists the "
                "GPU) and a torch built for CUDA from https://pytorch.org"
            )
        if device is not None and device.type != "cuda":
            raise ConfigError(f"TensorRT runs on NVIDIA GPUs and not on device {str(device)!r}")
        self.device = device if device is not None else current_gpu()
        self._stream = torch.cuda.Stream(self.device)

    @property
    def handle(self) -> int:
        """See ``Runner.handle``."""
        return int(self._stream.cuda_stream)

    @contextmanager
    def on(self) -> Iterator[None]:
        """See ``Runner.on``."""
        caller = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:  # after an error too the caller may go on, over the same buffers
            caller.wait_stream(self._stream)

    def capture(self, work: Callable[[], None]) -> Replay | None:
        """See ``Runner.capture``."""
        try:
            return record_graph(work, self._stream).replay
        except RuntimeError as error:
            log.warning("no CUDA graph could be recorded, so every step is queued by itself: %s", error)
            return None

    def wait(self) -> None:
        """See ``Runner.wait``."""
        self._stream.synchronize()

    def describe(self) -> Gpu:
        """See ``Runner.describe``."""
        found = torch.cuda.get_device_properties(self.device)
        return Gpu(
            name=found.name,
            capability=(found.major, found.minor),
            memory_bytes=found.total_memory,
            multiprocessors=found.multi_processor_count,
            cuda=torch.version.cuda or "",
            driver=_driver_version(),
        )


@functools.cache
def _driver_version() -> str:
    """The driver's version as nvidia-smi tells it; empty where it does not."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n")[0].strip() if done.returncode == 0 else ""


def require_tensorrt() -> str:
    """Make sure that TensorRT can be imported.

    Returns:
        Its version.

    Raises:
        MissingExtraError: if it is not installed or too old, with what to install.
    """
    try:
        import tensorrt as trt
    except ImportError as error:  # also where its libraries are missing
        raise MissingExtraError(f"TensorRT cannot be imported ({error}): {TENSORRT_INSTALL}") from error
    if version_numbers(trt.__version__) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST[:2]))
        raise MissingExtraError(f"TensorRT {trt.__version__} is older than {oldest}: {TENSORRT_INSTALL}")
    return trt.__version__


def describe_site(runner: Runner) -> Site:
    """This machine, as engines depend on it.

    Raises:
        MissingExtraError: if TensorRT is not installed.
    """
    return Site(tensorrt=require_tensorrt(), gpu=runner.describe())


class Log:
    """What TensorRT says: everything goes to this project's log, and errors are kept for messages.

    Its calls fail without an exception and say why here only. Who is about to call says so (``begin``), so that a
    failure is not explained by what failed before and was tried anew.
    """

    def __init__(self) -> None:
        import tensorrt as trt

        self.lines: list[str] = []
        """Errors since the last ``begin``."""
        kept = self.lines
        levels = {0: logging.ERROR, 1: logging.ERROR, 2: logging.WARNING, 3: logging.DEBUG, 4: logging.DEBUG}

        class Listener(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)  # TensorRT refuses a logger without

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                level = levels.get(int(severity), logging.DEBUG)
                if level >= logging.ERROR:
                    kept.append(msg)  # for the exception; what fails and is tried anew need not alarm anybody
                log.log(min(level, logging.INFO), "TensorRT: %s", msg)

        self.listener: trt.ILogger = Listener()
        """What TensorRT is given."""

    def begin(self) -> None:
        """Forget the errors of what was done before."""
        self.lines.clear()

    def reason(self) -> str:
        """The latest errors since the last ``begin`` in one line."""
        return "; ".join(" ".join(line.split()) for line in self.lines[-4:]) or "TensorRT gave no reason"

    def made(self, make: Callable[[trt.ILogger], Any]) -> Any:
        """A builder or runtime with this log.

        Raises:
            MachineError: if TensorRT cannot be started, which it says with a ``TypeError`` about pybind11.
        """
        self.begin()
        try:
            return make(self.listener)
        except TypeError as error:
            raise MachineError(
                f"TensorRT cannot start on this machine ({self.reason()}): it finds no GPU or no fitting NVIDIA driver "
                "(TensorRT for CUDA 13 needs r580 or later, for CUDA 12 r535)"
            ) from error


def refuse(message: str, said: Log) -> NoReturn:
    """Raise a ``BundleError`` with what TensorRT said; a ``MachineError`` where it had no memory."""
    reason = said.reason()
    no_memory = "outofmemory" in reason.lower().replace(" ", "")
    raise (MachineError if no_memory else BundleError)(f"{message}: {reason}")
