"""ONNX Runtime on NVIDIA's GPUs, by its CUDA and its TensorRT provider. Runs without torch.

ONNX Runtime would rather run on the CPU than fail: where a provider's libraries are missing it says so on standard
error at most, and takes another. Here that is refused, whole or for a single node.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bundle import SELF_TEST, STEP_GRAPH
from export.engines import (
    ONNXRUNTIME_GPU_INSTALL,
    PROVIDERS,
    Array,
    GraphEngine,
    OnnxRuntimeEngine,
    check_warp,
    this_machine,
)
from export.inputs import form_of
from export.parity import psnr
from fastv2v.errors import BundleError, MissingExtraError

log = logging.getLogger(__name__)

_LEAST_DB = 30.0
_KINDS = {"tensor(float)": np.float32, "tensor(int32)": np.int32}


class ProviderEngine(GraphEngine):
    """A graph in one of ONNX Runtime's providers, through buffers on its device.

    Args:
        path: an ONNX file.
        threads: CPU threads for what is left on the host; None takes all this process may use.
        precision: one of ``precisions``.
        device_id: number of the GPU.
        cuda_graph: record the work as a CUDA graph, so that nothing but its start is left to the host.

    Raises:
        BundleError: if the provider cannot run the graph here; the message says what it lacks.
        ConfigError: if the engine does not know the precision or threads is below 1.
        MissingExtraError: if this onnxruntime has no such provider.
    """

    provider: str
    """As ONNX Runtime names it."""
    needs: str
    """What must be installed beside it, and how."""
    device_type = "cuda"
    """Where its buffers lie."""

    def __init__(
        self,
        path: Path,
        threads: int | None = None,
        precision: str = "f32",
        *,
        device_id: int = 0,
        cuda_graph: bool = True,
    ) -> None:
        super().__init__(path, threads, precision)
        self.device_id = device_id
        self._runtime = _runtime(self.name, self.provider)
        self._session = self._open(self.options(cuda_graph=cuda_graph))
        self.shapes = {value.name: tuple(value.shape) for value in self._session.get_inputs()}
        self._binding = self._session.io_binding()
        # Buffers stay where they are, which a CUDA graph needs.
        self._inputs = {value.name: self._buffer(value) for value in self._session.get_inputs()}
        self._outputs = {value.name: self._buffer(value) for value in self._session.get_outputs()}
        for name, buffer in self._inputs.items():
            self._binding.bind_ortvalue_input(name, buffer)
        for name, buffer in self._outputs.items():
            self._binding.bind_ortvalue_output(name, buffer)

    @abstractmethod
    def options(self, *, cuda_graph: bool) -> dict[str, str]:
        """The provider's options, as ONNX Runtime spells them."""

    @property
    def where(self) -> str:
        """See ``OpenedEngine.where``."""
        return f"on {this_machine()['gpu'] or f'GPU {self.device_id}'}"

    def infer(self, feeds: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
        """See ``GraphEngine.infer``."""
        for name, buffer in self._inputs.items():
            buffer.update_inplace(np.ascontiguousarray(feeds[name]))
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # its errors share no base of their own below Exception
            raise BundleError(
                f"{self.name} {self.precision} failed in {self.path.name} ({_words(error)}); choose another engine or "
                "precision"
            ) from error
        return {name: buffer.numpy().copy() for name, buffer in self._outputs.items()}

    def _open(self, options: Mapping[str, str]) -> Any:
        """A session in which every node runs in the provider.

        Raises:
            BundleError: if there is none.
        """
        settings = self._runtime.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.log_severity_level = 3
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = self._runtime.InferenceSession(
                os.fspath(self.path),
                sess_options=settings,
                providers=[(self.provider, dict(options))],
                enable_fallback=0,
            )
        except Exception as error:  # its errors share no base of their own below Exception
            raise BundleError(self._refusal(_words(error))) from error
        if (taken := session.get_providers()[0]) != self.provider:
            raise BundleError(self._refusal(f"ONNX Runtime took {taken} in its place"))
        return session

    def _refusal(self, reason: str) -> str:
        unseen = "" if this_machine()["gpu"] else "; nvidia-smi shows no GPU here"
        return f"{self.name} cannot run {self.path.name} here ({reason}): it needs {self.needs}{unseen}"

    def _buffer(self, value: Any) -> Any:
        """Memory of the device for an input or output."""
        if value.type not in _KINDS:
            raise BundleError(f"{self.path}: {value.name} is a {value.type}, which no step graph has")
        return self._runtime.OrtValue.ortvalue_from_shape_and_type(
            list(value.shape), _KINDS[value.type], self.device_type, self.device_id
        )


class CudaProviderEngine(ProviderEngine):
    """ONNX Runtime's own CUDA kernels and cuDNN. ``tf32`` multiplies float32 with 10 bits of mantissa."""

    name = "onnxruntime-cuda"
    precisions = ("f32", "tf32")
    provider = PROVIDERS["onnxruntime-cuda"]
    needs = f"an NVIDIA GPU, its driver, CUDA and cuDNN ({ONNXRUNTIME_GPU_INSTALL})"

    def options(self, *, cuda_graph: bool) -> dict[str, str]:
        """See ``ProviderEngine.options``."""
        return {
            "device_id": str(self.device_id),
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "use_tf32": "1" if self.precision == "tf32" else "0",
            "enable_cuda_graph": "1" if cuda_graph else "0",
        }


class TensorRTProviderEngine(ProviderEngine):
    """TensorRT inside ONNX Runtime, which builds its engine when the graph is opened first and keeps it in a cache.

    TensorRT multiplies in TF32 where nothing less is allowed, hence the name of that precision. There is no int8: the
    quantised graph of a bundle has asymmetric ranges, which TensorRT does not take; ``export.tensorrt_builder``
    quantises in its form.
    """

    name = "onnxruntime-tensorrt"
    precisions = ("tf32", "bf16", "f16")
    provider = PROVIDERS["onnxruntime-tensorrt"]
    needs = (
        "an NVIDIA GPU, its driver, CUDA and TensorRT 10 "
        f"({ONNXRUNTIME_GPU_INSTALL}; pip install 'tensorrt-cu13==10.*')"
    )

    def options(self, *, cuda_graph: bool) -> dict[str, str]:
        """See ``ProviderEngine.options``."""
        cache = self.cache_folder()
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {
            "device_id": str(self.device_id),
            "trt_fp16_enable": "1" if self.precision == "f16" else "0",
            "trt_bf16_enable": "1" if self.precision == "bf16" else "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": os.fspath(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": os.fspath(cache),
            "trt_cuda_graph_enable": "1" if cuda_graph else "0",
        }

    def cache_folder(self) -> Path:
        """Where engines built of this graph are kept: the user's own, for bundles are never written to."""
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        return Path.home() / ".cache" / "fastv2v" / self.name / f"{digest}-{self.precision}"


def _words(error: Exception) -> str:
    """What ONNX Runtime says, without its codes."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(" : ")[-1].rstrip(".")


def _runtime(name: str, provider: str) -> Any:
    """The module onnxruntime, known to have the provider.

    Raises:
        MissingExtraError: if it has not, or is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"{name} needs onnxruntime-gpu: {ONNXRUNTIME_GPU_INSTALL}") from error
    if provider not in onnxruntime.get_available_providers():
        raise MissingExtraError(
            f"{name} needs an NVIDIA GPU and ONNX Runtime's build for it, and the one installed here "
            f"({onnxruntime.__version__}) lacks {provider}: {ONNXRUNTIME_GPU_INSTALL}"
        )
    if find_spec("nvidia") is not None and hasattr(onnxruntime, "preload_dlls"):
        # Libraries of pip's nvidia packages lie where no loader looks. What it prints is no user's business.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            onnxruntime.preload_dlls()
        log.debug("%s", said.getvalue())
    return onnxruntime


def open_cuda(folder: Path, precision: str, threads: int | None = None) -> ProviderEngine:
    """The engine ``onnxruntime-cuda``; see ``export.engines.GpuEngine.opener``."""
    return _open(CudaProviderEngine, folder, precision, threads)


def open_tensorrt(folder: Path, precision: str, threads: int | None = None) -> ProviderEngine:
    """The engine ``onnxruntime-tensorrt``; see ``export.engines.GpuEngine.opener``."""
    return _open(TensorRTProviderEngine, folder, precision, threads)


def _open(kind: type[ProviderEngine], folder: Path, precision: str, threads: int | None) -> ProviderEngine:
    check_warp(kind(folder / SELF_TEST, 1, precision))
    engine = kind(folder / STEP_GRAPH, threads, precision)
    check_step(engine)
    return engine


def check_step(engine: GraphEngine) -> None:
    """Refuse an engine that draws another frame than ONNX Runtime on the CPU does, from the same random inputs.

    Whole graphs have been miscompiled without a word though their parts were right.

    Args:
        engine: opened on a step graph.

    Raises:
        BundleError: if the PSNR between the frames is below 30 dB.
    """
    rng = np.random.default_rng(0)
    form = form_of(engine.shapes)
    classes = engine.shapes.get("coarse", (0, 2))[1] - form.edges - form.guidance
    feeds: dict[str, NDArray[Any]] = {
        name: rng.integers(0, classes, shape).astype(np.int32) if name == "labels" else rng.random(shape, np.float32)
        for name, shape in engine.shapes.items()
    }
    feeds["valid"] = np.ones(1, np.float32)
    theirs = OnnxRuntimeEngine(engine.path, engine.threads).infer(feeds)["frame"]
    reached = psnr(engine.infer(feeds)["frame"], theirs)
    if not reached >= _LEAST_DB:
        raise BundleError(
            f"{engine.name} {engine.precision} draws other frames than ONNX Runtime on the CPU ({reached:.1f} dB); "
            "choose another precision or engine"
        )
