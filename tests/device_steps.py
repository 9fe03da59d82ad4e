"""The tiny generator as a step whose past stays on its device, and as an engine on arrays."""

from __future__ import annotations

import torch
from tiny_step import TinyStep

from export.device_step import DeviceHistory, DeviceInputs
from export.inputs import PLAIN
from fastv2v.contracts import History


class TinyDeviceStep:
    """A ``DeviceStep``; spoils the frame of one call where it is told to."""

    name, precision, form = "tiny", "f32", PLAIN
    memory_bytes = None

    def __init__(self, spoil_at: int = -1, fail_at: int = -1, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self._module = TinyStep().eval().to(device)
        self._inputs: DeviceInputs | None = None
        self._spoil_at, self._fail_at, self.calls = spoil_at, fail_at, 0

    def start(self, first, seed_frame=None):
        if self._inputs is None:
            self._inputs = DeviceInputs(first, self.device)
            self._history = DeviceHistory(tuple(first.past.shape), 2, device=self.device)
            self._frame = torch.zeros_like(self._history.frames[:, 0])
        self._inputs.load(first)
        self._history.start(self._inputs.past, seed_frame)

    def step(self, condition):
        if self.calls == self._fail_at:
            raise RuntimeError("out of coffee")
        self._inputs.load(condition)
        past = self._history
        with torch.no_grad():
            output, _ = self._module.step(
                self._inputs.tensors["condition"], History(past.conditions, past.frames, past.valid)
            )
        self._frame.copy_(output.frame)
        past.advance(self._inputs.past, self._frame)
        if self.calls == self._spoil_at:
            self._frame[0, 1, 2, 3] = torch.nan
        self.calls += 1
        return self._frame


class TinyArrayStep:
    """The same as a ``StepEngine``."""

    name, precision, form = "tiny", "f32", PLAIN

    def __init__(self) -> None:
        self._module = TinyStep().eval()

    def run(self, condition, history_conditions, history_frames, valid):
        given = [torch.from_numpy(x.copy()) for x in (history_conditions, history_frames, valid)]
        with torch.no_grad():
            output, _ = self._module.step(torch.from_numpy(condition.inputs["condition"].copy()), History(*given))
        return {"frame": output.frame.numpy()}
