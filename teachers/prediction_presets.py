"""Ways to train a label predictor, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fastv2v.data.folder import FolderConfig
from fastv2v.data.sampling import SamplingConfig
from fastv2v.data.transforms import GeometryConfig
from fastv2v.device import DeviceConfig
from fastv2v.optim import OptimConfig
from fastv2v.recipe import UNSET_ROOT, DataRecipe
from fastv2v.train import TrainConfig
from teachers.prediction import PredictionTaskConfig, PredictorConfig


@dataclass(frozen=True, kw_only=True)
class PredictorRecipe:
    """Everything that decides what a label predictor becomes."""

    data: DataRecipe = field(default_factory=DataRecipe)
    """Data set and clips: each shows the observed maps and those to predict."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """Size and shape of the network."""
    task: PredictionTaskConfig = field(default_factory=PredictionTaskConfig)
    """Losses and rollouts."""
    flow_preset: Literal["ultrafast", "fast", "medium"] = "medium"
    """Preset of the DIS reference flow."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(best_metric="mean_iou"))
    """How long, how fast, how often to look."""
    device: DeviceConfig = field(default_factory=DeviceConfig)
    """Where and in what precision."""


def street() -> PredictorRecipe:
    """Label maps of 35 Cityscapes classes at 512x256; four are observed, eight predicted in training."""
    return PredictorRecipe(
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                classes="cityscapes",
                geometry=GeometryConfig(mode="scaleWidth", load_size=512, interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=12),
            num_workers=4,
        ),
        task=PredictionTaskConfig(chunk_frames=4),
        train=TrainConfig(
            steps=30_000, checkpoint_every=1000, sample_every=1000, eval_every=1000, best_metric="mean_iou"
        ),
    )


def demo() -> PredictorRecipe:
    """A small predictor that learns how one place moves in minutes on a CPU, at 256x128."""
    return PredictorRecipe(
        data=DataRecipe(
            folder=FolderConfig(
                root=UNSET_ROOT,
                test_tail=16,
                geometry=GeometryConfig(mode="exact", size=(128, 256), interpolation="area"),
            ),
            sampling=SamplingConfig(num_frames=8),
            batch_size=2,
            eval_frames=14,
        ),
        predictor=PredictorConfig(width=16, num_blocks=4, edge_kernel=3),
        task=PredictionTaskConfig(chunk_frames=2),
        flow_preset="fast",
        train=TrainConfig(
            steps=100_000,
            max_minutes=4.0,
            optim=OptimConfig(lr=1e-3),
            ema_decay=0.99,
            best_metric="mean_iou",
            log_every=10,
            sample_every=100,
            eval_every=25,
            checkpoint_every=10,
        ),
    )


PRESETS = {"street": street, "demo": demo}
"""Presets by the name the command line knows them by."""
