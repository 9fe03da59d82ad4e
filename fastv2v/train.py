"""The one training loop: teacher training, spatial and temporal distillation differ only in their ``Task``.

Everything random in a step derives from (seed, step, rank), and a checkpoint holds everything else, so that a run that
was stopped at any moment and started again ends with the same weights, bit for bit on a CPU, as one that was not. (A
time limit, ``max_minutes``, makes the schedule depend on the clock and gives this up.)
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastv2v import checkpoint as ckpt
from fastv2v.contracts import Losses, Task
from fastv2v.data.clip import Clip
from fastv2v.device import Device, player_gradients
from fastv2v.ema import Ema
from fastv2v.errors import CheckpointError, ConfigError, DataError, DivergenceError
from fastv2v.log import Progress, SilentProgress
from fastv2v.losses.total import weighted_total
from fastv2v.optim import OptimConfig, build_adam, set_lr, trainable_parameters
from fastv2v.run import Run
from fastv2v.seed import derive_seed, deterministic_algorithms, generator_for, seed_everything

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long and how to train, and how often to look."""

    steps: int = 10_000
    """Training steps; each takes ``gradient_accumulation`` batches. 0 saves the initial weights as they are, so that
    imported ones can be used where a run is wanted."""
    max_minutes: float | None = None
    """Stop after this much training time, counted over all restarts; the learning rate then follows the clock."""
    seed: int = 0
    """Root of all randomness in training."""
    deterministic: bool = False
    """Use only GPU kernels that repeat bit for bit. Slower, and an operation without one stops the training."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser of every player."""
    discriminator_lr_multiplier: float = 1.0
    """Factor on the learning rate of every player but the generator."""
    explosion_factor: float | None = 100.0
    """Stop where the generator's loss exceeds this many times its median over the last 50 steps; None never does."""
    gradient_clip: float | None = None
    """Largest norm of one player's gradient; larger ones are scaled down to it."""
    ema_decay: float | None = 0.999
    """Decay of the generator's averaged weights, which are evaluated and delivered. None keeps no average."""
    log_every: int = 50
    """Steps between reports of losses and speed."""
    sample_every: int = 500
    """Steps between pictures; 0 for none."""
    eval_every: int = 500
    """Steps between evaluations on held-out clips; 0 for none."""
    checkpoint_every: int = 500
    """Steps between checkpoints. A new best evaluation and the end are saved in any case."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep, beside the best."""
    best_metric: str = "psnr"
    """The evaluated number that decides which checkpoint is best."""
    best_is: Literal["highest", "lowest"] = "highest"
    """Which end of ``best_metric`` is good."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "sample_every", "eval_every", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("max_minutes", "gradient_clip", "discriminator_lr_multiplier"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} must be positive, got {value}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        if self.explosion_factor is not None and not self.explosion_factor > 1:
            raise ConfigError(f"explosion_factor must exceed 1, got {self.explosion_factor}; None switches it off")
        if self.best_is not in ("highest", "lowest"):
            raise ConfigError(f"best_is must be highest or lowest, got {self.best_is!r}")


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run."""

    step: int
    """After which step."""
    metric: str
    """Which number."""
    value: float
    """What it was."""


@dataclass(frozen=True)
class FitResult:
    """What training came to."""

    step: int
    """Steps made, over all restarts."""
    elapsed_s: float
    """Time spent, over all restarts, in seconds."""
    best: Best | None
    """The best evaluation, if any was made."""
    metrics: Mapping[str, float]
    """The last evaluation."""


def fit(
    task: Task,
    batches: Callable[[int], Iterator[Clip]],
    run: Run,
    config: TrainConfig,
    device: Device,
    *,
    sample_clip: Clip | None = None,
    eval_clips: Sequence[Clip] = (),
    ema_player: str = "generator",
    progress: Progress | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train a task to its end, from the newest checkpoint of the run if there is one.

    Ctrl-C and kill are safe at any moment: the same call continues from the last checkpoint.

    Args:
        task: what is trained. Its players are moved to the device; its frozen networks must be there already.
        batches: given a number i, an endless stream of this process's batches number i, i+1, ... It must give the same
            clips for the same number, or a resumed run differs from an uninterrupted one.
        run: an open run folder.
        config: how long and how.
        device: where, in what precision, with which other processes.
        sample_clip: what pictures are made of.
        eval_clips: held-out clips.
        ema_player: the player whose weights are averaged, evaluated and delivered: the generator.
        progress: who is told; nobody when None.
        architecture: description of the networks, kept as ``architecture`` in every ``state.json``. Plain JSON values.

    Returns:
        Steps and time spent, and the last and the best evaluation.

    Raises:
        DivergenceError: if a loss or gradient is NaN or infinite, or the generator's loss explodes; the last checkpoint
            is from before.
        ConfigError: if losses and weights, or players and losses, do not match by name.
        CheckpointError: if the newest checkpoint does not fit the networks.
        DataError: if the batches end, or the clips of one update differ in length.
    """
    progress = progress or SilentProgress()
    with deterministic_algorithms(config.deterministic), contextlib.closing(progress):
        session = _Session(task, run, config, device, ema_player, dict(architecture or {}))
        session.restore()
        run.begin(session.step)
        progress.start(config.steps, session.step)
        if config.steps == 0 and session.step == 0:
            session.save()
        clips = batches(session.step * device.gradient_accumulation)
        while not session.is_over():
            session.train_step([_take(clips, session.step) for _ in range(device.gradient_accumulation)])
            progress.advance(session.step, session.done(), session.left_s())
            improved = False
            if session.due(config.log_every):
                progress.report(session.step, "train", session.report())
            if eval_clips and session.due(config.eval_every):
                improved = session.evaluate(eval_clips)
                progress.report(session.step, "eval", session.metrics)
            if sample_clip is not None and session.due(config.sample_every):
                session.sample(sample_clip)
            if improved or session.due(config.checkpoint_every):
                session.save()
    return FitResult(session.step, session.elapsed_s, session.best, session.metrics)


@dataclass(frozen=True)
class _Player:
    """A network with what trains it."""

    module: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    lr: float


class _Session:
    """Everything that changes while a task is trained."""

    def __init__(
        self, task: Task, run: Run, config: TrainConfig, device: Device, ema_player: str, architecture: dict[str, Any]
    ) -> None:
        self.step = 0
        self.elapsed_s = 0.0
        self.best: Best | None = None
        self.metrics: dict[str, float] = {}
        self._task, self._run, self._config, self._device = task, run, config, device
        self._ema_player, self._architecture = ema_player, architecture
        _check_players(task, config, ema_player)
        self._players = {name: self._open_player(name, module) for name, module in task.players.items()}
        device.broadcast_(x for player in self._players.values() for x in _tensors(player.module))
        decay = config.ema_decay
        self._ema = Ema(task.players[ema_player], decay) if decay is not None else None
        watch = None
        if config.explosion_factor is not None:
            watch = _ExplosionWatch(ema_player, task.weights[ema_player], config.explosion_factor)
        self._window = _LossWindow(watch)
        self._idle = set(self._players)
        self._window_frames, self._window_s = 0, 0.0
        self._started_at, self._started_s, self._started_done = time.monotonic(), 0.0, 0.0

    def _open_player(self, name: str, module: nn.Module) -> _Player:
        """Move a network to the device and give it an optimiser."""
        self._device.place(module).train()
        parameters = trainable_parameters(module)
        optimizer = build_adam(parameters.values(), self._config.optim)
        factor = 1.0 if name == self._ema_player else self._config.discriminator_lr_multiplier
        lr = self._config.optim.lr * factor
        return _Player(module, parameters, optimizer, self._device.grad_scaler(), lr)

    # How far we are.

    def done(self) -> float:
        """The fraction of the training that is over, in [0, 1], by steps or by time, whichever is further."""
        limit = self._config.max_minutes
        by_time = self.elapsed_s / (60 * limit) if limit else 0.0
        by_steps = self.step / self._config.steps if self._config.steps else 1.0
        return min(1.0, max(by_steps, by_time))

    def is_over(self) -> bool:
        """Whether the steps are made or the time is spent."""
        return self.done() >= 1

    def due(self, every: int) -> bool:
        """Whether what happens every so many steps happens now; 0 is never, and the end is always a time for it."""
        return every > 0 and (self.is_over() or self.step % every == 0)

    def left_s(self) -> float:
        """Estimate of the seconds to the end, from the pace since this start."""
        made = self.done() - self._started_done
        return (self.elapsed_s - self._started_s) * (1 - self.done()) / made if made > 0 else 0.0

    def _tick(self) -> None:
        """Bring ``elapsed_s`` up to date, alike in all processes where decisions hang on it."""
        self.elapsed_s = self._started_s + time.monotonic() - self._started_at
        if self._config.max_minutes is not None and self._device.world_size > 1:
            self.elapsed_s = self._device.mean(torch.tensor(self.elapsed_s, device=self._device.device)).item()

    # Training.

    def train_step(self, clips: Sequence[Clip]) -> None:
        """One step: every chunk of the clips, one update of every player after each chunk."""
        began = time.monotonic()
        factor = self._config.optim.lr_factor(self.done())
        for player in self._players.values():
            set_lr(player.optimizer, player.lr * factor)
        self.step += 1
        seed_everything(derive_seed(self._config.seed, "layers", self.step, self._device.rank))
        # All clips of an update, on all ranks, draw the same: a gap decides how many chunks there are, and processes
        # that disagree about it would wait for each other for ever.
        rngs = [generator_for(self._config.seed, "task", self.step) for _ in clips]
        at = self.step - 1
        runs = [
            iter(self._task.step(clip.to(self._device.device), rng, at)) for clip, rng in zip(clips, rngs, strict=True)
        ]
        chunks = 0
        while self._train_chunk(runs):
            chunks += 1
        if chunks == 0:
            raise DataError(f"step {self.step}: the clip gave no losses; is it long enough for the task?")
        if self._device.device.type == "cpu":
            self._window.check()  # free here; elsewhere it waits for the device, so only reports and saves do
        self._window_frames += sum(clip.frames.shape[0] * clip.num_frames for clip in clips)
        self._window_s += time.monotonic() - began
        self._tick()

    def _train_chunk(self, runs: Sequence[Iterator[Losses]]) -> bool:
        """Update every player from the next chunk of each run; False when they are used up."""
        sums: dict[str, list[Tensor | None]] = {}
        ended = 0
        for run in runs:
            with self._device.autocast():
                losses = next(run, None)
            if losses is None:
                ended += 1
                continue
            for name, gradients in self._gradients(losses).items():
                sums[name] = _added(sums[name], gradients) if name in sums else gradients
        if ended == len(runs):
            return False
        if ended:
            raise DataError(f"step {self.step}: the clips of one update differ in their number of chunks")
        for name, gradients in sums.items():
            self._update(
                name, [None if g is None else g / len(runs) for g in gradients] if len(runs) > 1 else gradients
            )
        self._device.broadcast_(b for name in sums for b in self._players[name].module.buffers())
        if self._ema is not None and self._ema_player in sums:
            self._ema.update()
        return True

    def _gradients(self, losses: Losses) -> dict[str, list[Tensor | None]]:
        """Every player's gradients from its own losses, all taken before anything is updated.

        A player that a chunk leaves out, or gives constant terms only, is not updated: a discriminator of several
        frames has nothing to say about the first.
        """
        if unknown := sorted(losses.keys() - self._players.keys()):
            raise ConfigError(f"the task gave losses for {unknown}, which are not players: {sorted(self._players)}")
        result = {}
        left = len(losses)
        for name, terms in losses.items():
            left -= 1
            player = self._players[name]
            total = weighted_total(terms, self._task.weights[name], player=name)
            # A constant term says that the chunk has nothing to judge, as before a temporal tuple is full.
            told = {term: value for term, value in terms.items() if value.requires_grad}
            if told:
                self._window.add(self.step, name, {**told, "total": total})
            scaled = total if player.scaler is None else player.scaler.scale(total)
            parameters = list(player.parameters.values())
            if not total.requires_grad:
                continue
            gradients = player_gradients(scaled, parameters, retain_graph=left > 0)
            if all(gradient is None for gradient in gradients):
                raise ConfigError(f"the losses of {name} depend on none of its parameters, only on those of others")
            result[name] = gradients
        return result

    def _update(self, name: str, gradients: Sequence[Tensor | None]) -> None:
        """One optimiser step of one player."""
        player = self._players[name]
        parameters = list(player.parameters.values())
        for parameter, gradient in zip(parameters, self._device.average_gradients(gradients, parameters), strict=True):
            parameter.grad = gradient
        self._idle.discard(name)
        if player.scaler is not None:
            player.scaler.unscale_(player.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self._config.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self._config.gradient_clip, norm)
        if player.scaler is None:
            self._window.add(self.step, name, {"grad_norm": norm})
            player.optimizer.step()
        else:  # a non-finite fp16 gradient is no divergence: the scaler leaves the step out and lowers its scale
            player.scaler.step(player.optimizer)
            player.scaler.update()
        player.optimizer.zero_grad(set_to_none=True)

    # Looking.

    def report(self) -> dict[str, float]:
        """Means of all terms since the last report, the learning rate and the speed; also written to the run."""
        began = time.monotonic()
        values = self._window.drain(self._device)
        self._window_s += time.monotonic() - began
        if self._idle:
            _LOG.warning("step %d: no loss has reached %s so far", self.step, ", ".join(sorted(self._idle)))
        for name, player in self._players.items():
            if player.scaler is not None:
                values[f"{name}/loss_scale"] = player.scaler.get_scale()
        values["lr"] = self._config.optim.lr * self._config.optim.lr_factor(self.done())
        values["frames_per_second"] = self._window_frames * self._device.world_size / max(self._window_s, 1e-9)
        self._window_frames, self._window_s = 0, 0.0
        self._run.log(self.step, "train", values)
        return values

    def evaluate(self, clips: Sequence[Clip]) -> bool:
        """Evaluate with averaged weights; whether it is the best so far."""
        self._window.check()
        world = self._device.world_size
        own = clips[self._device.rank :: world] if len(clips) >= world else clips
        with self._as_delivered():
            rows = [self._task.evaluate(clip.to(self._device.device)) for clip in own]
        names = sorted(rows[0])
        table = torch.tensor([[*(row[name] for name in names), 1.0] for row in rows], device=self._device.device)
        *totals, count = self._device.sum(table.sum(0)).tolist()
        self.metrics = {name: total / count for name, total in zip(names, totals, strict=True)}
        self._run.log(self.step, "eval", self.metrics)
        metric = self._config.best_metric
        if metric not in self.metrics:
            raise ConfigError(f"best_metric {metric} is not evaluated by this task; it gives {', '.join(names)}")
        value = self.metrics[metric]
        sign = 1 if self._config.best_is == "highest" else -1
        if math.isnan(value) or (self.best is not None and sign * value <= sign * self.best.value):
            return False
        self.best = Best(self.step, metric, value)
        return True

    def sample(self, clip: Clip) -> None:
        """Make pictures with averaged weights; the main process does."""
        self._window.check()
        if not self._device.is_main:
            return
        with self._as_delivered():
            samples = self._task.sample(clip.to(self._device.device))
        self._run.log_samples(self.step, {name: _pictures(frames) for name, frames in samples.items()})

    @contextlib.contextmanager
    def _as_delivered(self) -> Iterator[None]:
        """Averaged weights, evaluation mode, no gradients, training precision; all put back afterwards."""
        modes = {m: m.training for player in self._players.values() for m in player.module.modules()}
        swapped = self._ema.swap() if self._ema is not None else contextlib.nullcontext()
        try:
            for player in self._players.values():
                player.module.eval()
            # autocast inside the swap: what it caches of the weights ends with it
            with swapped, torch.no_grad(), self._device.autocast():
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    # Keeping.

    def save(self) -> None:
        """Write a checkpoint and drop old ones."""
        self._window.check()
        if not self._device.is_main:
            return
        tensors: dict[str, Mapping[str, Tensor]] = {}
        for name, player in self._players.items():
            tensors[name] = player.module.state_dict()
            tensors[f"{name}.optimizer"] = ckpt.optimizer_tensors(player.optimizer, player.parameters)
        if self._ema is not None:
            tensors["ema"] = self._ema.state_dict()
        tensors["rng"], rng = ckpt.rng_state()
        state = {
            "elapsed_s": self.elapsed_s,
            "seed": self._config.seed,
            "best": asdict(self.best) if self.best else None,
            "metrics": self.metrics,
            "ema_player": self._ema_player if self._ema is not None else None,
            "ema_updates": self._ema.num_updates if self._ema is not None else 0,
            "scalers": {name: p.scaler.state_dict() for name, p in self._players.items() if p.scaler is not None},
            "rng": rng,
            "architecture": self._architecture,
        }
        ckpt.save_checkpoint(self._run.checkpoints, self.step, tensors, state)
        best_step = self.best.step if self.best else None
        ckpt.prune_checkpoints(self._run.folder, self._config.keep_checkpoints, best_step)

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        self._device.barrier()
        folder = ckpt.latest_checkpoint(self._run.folder)
        self._check_agreement(folder is not None and ckpt.read_state(folder)["step"])
        if folder is not None:
            self._load(folder)
            _LOG.info("continuing from %s", folder)
        self._started_at, self._started_s, self._started_done = time.monotonic(), self.elapsed_s, self.done()

    def _check_agreement(self, step: int) -> None:
        """All processes must have found the same checkpoint."""
        found = torch.tensor([float(step)], device=self._device.device)
        if self._device.mean(found).item() != found.item():
            raise CheckpointError(
                f"this process found step {step} in {self._run.checkpoints} and another one did not; "
                "the run folder must lie where all processes see it"
            )

    def _load(self, folder: Path) -> None:
        """Take over a checkpoint whole."""
        state = ckpt.read_state(folder)
        for name, player in self._players.items():
            ckpt.load_weights(player.module, folder / f"{name}.safetensors")
            ckpt.load_optimizer(player.optimizer, player.parameters, folder / f"{name}.optimizer.safetensors")
            if player.scaler is not None:
                player.scaler.load_state_dict(state["scalers"][name])
        if self._ema is not None:
            with self._ema.swap():
                ckpt.load_weights(self._players[self._ema_player].module, folder / "ema.safetensors")
            self._ema.num_updates = state["ema_updates"]
        ckpt.restore_rng_state(ckpt.load_tensors(folder / "rng.safetensors"), state["rng"])
        self.step, self.elapsed_s, self.metrics = state["step"], state["elapsed_s"], state["metrics"]
        self.best = Best(**state["best"]) if state["best"] else None


class _LossWindow:
    """Loss terms since the last report, kept on the device: reading a number makes the host wait for it."""

    def __init__(self, watch: _ExplosionWatch | None) -> None:
        self._entries: list[tuple[int, tuple[str, ...], Tensor]] = []
        self._num_checked = 0
        self._watch = watch

    def add(self, step: int, player: str, terms: Mapping[str, Tensor]) -> None:
        """Take in scalars of one chunk."""
        values = torch.stack([term.detach().float() for term in terms.values()])
        self._entries.append((step, tuple(f"{player}/{name}" for name in terms), values))

    def check(self) -> None:
        """Raise DivergenceError at the first number that is not finite, and where a loss explodes."""
        fresh = self._entries[self._num_checked :]
        self._num_checked = len(self._entries)
        if not fresh:
            return
        numbers = iter(torch.cat([values for _, _, values in fresh]).tolist())
        for step, names, _ in fresh:
            terms = dict(zip(names, numbers, strict=False))
            for name, value in terms.items():
                if not math.isfinite(value):
                    player, _, term = name.partition("/")
                    raise DivergenceError(
                        f"training diverged at step {step}: {term} of {player} is {value}; the last checkpoint is from "
                        "before. Lower optim.lr or set gradient_clip"
                    )
            if self._watch is not None:
                self._watch.look(step, terms)

    def drain(self, device: Device) -> dict[str, float]:
        """Mean of each term over the window and all processes; empties the window."""
        self.check()
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for _, names, values in self._entries:
            for name, value in zip(names, values, strict=True):
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + 1
        self._entries, self._num_checked = [], 0
        means = device.mean(torch.stack([sums[name] / counts[name] for name in sums]))
        return dict(zip(sums, means.tolist(), strict=True))


class _ExplosionWatch:
    """Notices a loss that explodes without becoming infinite.

    Args:
        player: whose loss is watched.
        weights: of its terms.
        factor: how many times its usual size is too much.
    """

    STEPS = 50
    """How many steps back the usual size is found; before there are so many, nothing is said."""

    def __init__(self, player: str, weights: Mapping[str, float], factor: float) -> None:
        self._player, self._factor = player, factor
        self._weights = {f"{player}/{term}": weight for term, weight in weights.items()}
        self._recent: deque[float] = deque(maxlen=self.STEPS)
        self._step, self._sizes = 0, [0.0]

    def look(self, step: int, terms: Mapping[str, float]) -> None:
        """Take in the terms of one chunk.

        Adversarial terms may be negative, so that totals may pass through 0: magnitudes are summed.

        Raises:
            DivergenceError: naming the step and the largest term.
        """
        shares = {name: abs(weight * terms[name]) for name, weight in self._weights.items() if name in terms}
        if not shares:
            return
        if step != self._step:
            if self._step:
                self._recent.append(fmean(self._sizes))
            self._step, self._sizes = step, []
        size = sum(shares.values())
        self._sizes.append(size)
        if len(self._recent) < self.STEPS or size <= self._factor * (usual := median(self._recent)):
            return
        largest = max(shares, key=lambda name: shares[name]).removeprefix(f"{self._player}/")
        raise DivergenceError(
            f"training exploded at step {step}: the loss of {self._player} is {size:.3g} after a median of {usual:.3g} "
            f"over {self.STEPS} steps, mostly by {largest}; the last checkpoint is from before. Lower optim.lr, set "
            "gradient_clip, or raise explosion_factor where this is expected"
        )


def _check_players(task: Task, config: TrainConfig, ema_player: str) -> None:
    """Refuse tasks that cannot be trained or saved."""
    if not task.players or task.players.keys() != task.weights.keys():
        raise ConfigError(f"players {sorted(task.players)} and loss weights {sorted(task.weights)} must be the same")
    if config.ema_decay is not None and ema_player not in task.players:
        raise ConfigError(f"ema_player {ema_player} is not a player: {sorted(task.players)}")
    for name, module in task.players.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in ("ema", "rng"):
            raise ConfigError(f"{name!r} cannot name a player: it names its files, in a-z, 0-9 and _; not ema, not rng")
        if not trainable_parameters(module):
            raise ConfigError(f"the player {name} has no trainable parameter; frozen networks are no players")


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a network."""
    return [*module.parameters(), *module.buffers()]


def _added(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Elementwise sum of gradients; None counts as zero."""
    return [b if a is None else a if b is None else a + b for a, b in zip(first, second, strict=True)]


def _take(clips: Iterator[Clip], step: int) -> Clip:
    """The next batch."""
    clip = next(clips, None)
    if clip is None:
        raise DataError(f"the batches ended after step {step}; they must be endless")
    return clip


def _pictures(frames: Tensor) -> NDArray[np.uint8]:
    """The first clip of (B, T, 3, H, W) in [-1, 1] as (T, H, W, 3) bytes."""
    scaled = (frames[0].float().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()
