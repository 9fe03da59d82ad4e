"""Recipes of ``train-interpolation``."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastv2v.device import DeviceConfig
from fastv2v.optim import OptimConfig
from fastv2v.train import TrainConfig
from interpolate.learned.data import TripletConfig
from interpolate.learned.network import FusionConfig
from interpolate.learned.task import FusionWeights
from interpolate.motion import MotionConfig


@dataclass(frozen=True, kw_only=True)
class InterpolationRecipe:
    """Everything a training of the interpolation network needs beside its data."""

    network: FusionConfig = field(default_factory=FusionConfig)
    """The network."""
    motion: MotionConfig = field(default_factory=lambda: MotionConfig(grade="medium", working_scale=0.8))
    """The motion compensation it corrects; deployed with it."""
    data: TripletConfig = field(default_factory=TripletConfig)
    """Triplets and how they are drawn."""
    losses: FusionWeights = field(default_factory=FusionWeights)
    """What is minimised."""
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=20_000,
            optim=OptimConfig(lr=1e-3, betas=(0.9, 0.999), warmup_fraction=0.02, decay_fraction=0.6),
            gradient_clip=1.0,
            ema_decay=0.99,
        )
    )
    """How long and how to train."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""
