"""Settings every training stage shares: its data and its pretrained helpers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fastv2v.data.folder import FolderConfig, Phase
from fastv2v.data.sampling import SamplingConfig
from fastv2v.errors import ConfigError

UNSET_ROOT = Path(".")
"""Root of a recipe's folder until the data set is named."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Which data are read and how clips are drawn from them."""

    folder: FolderConfig = field(default_factory=lambda: FolderConfig(root=UNSET_ROOT))
    """The data set. Its root and phase are filled in by the command."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How training clips are drawn."""
    batch_size: int = 1
    """Clips of one step, over all processes."""
    num_workers: int = 0
    """Loader processes; 0 loads in the training process, the fastest way for data that fit into the cache."""
    cache_mb: float = 512.0
    """Memory for decoded pictures in each loading process, in MiB."""
    eval_frames: int = 16
    """Held-out clips are scored over at most this many frames."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0 or self.eval_frames < 2:
            raise ConfigError(
                f"batch_size must be at least 1, num_workers at least 0 and eval_frames at least 2, "
                f"got {self.batch_size}, {self.num_workers} and {self.eval_frames}"
            )

    def at(self, root: Path, phase: Phase) -> FolderConfig:
        """The folder to open: this recipe on one data set.

        Raises:
            ConfigError: if the recipe names another root already.
        """
        if self.folder.root not in (UNSET_ROOT, root):
            raise ConfigError("name the data set with --data; leave data.folder.root alone")
        return replace(self.folder, root=root, phase=phase)


@dataclass(frozen=True, kw_only=True)
class HelperRecipe:
    """Frozen networks and estimators that training leans on."""

    perceptual: Literal["efficientnet-lite0", "vgg19"] = "efficientnet-lite0"
    """Features of the perceptual loss. EfficientNet-Lite0 is installed with the package; VGG-19 needs its weights."""
    vgg19_weights: Path | None = None
    """torchvision's VGG-19 state dict on disk, for ``vgg19``."""
    vgg19_normalised: bool = False
    """Give VGG-19 ImageNet's mean and deviation; vid2vid feeds it frames in [-1, 1] as they are."""
    flow: Literal["ultrafast", "fast", "medium", "raft-small", "raft-large", "files"] = "medium"
    """Reference flow: a preset of DIS, which needs no weights; RAFT from torchvision; or flow files of the data set."""
    raft_weights: Path | None = None
    """A state dict of torchvision's RAFT on disk; without it torchvision downloads its own."""
    flow_confidence: Literal["photometric", "forward-backward", "both"] = "photometric"
    """What the reference flow is trusted by: the colours it explains, as in vid2vid; its agreement with the flow of
    the other direction, which costs a second estimate; or both."""

    def __post_init__(self) -> None:
        if self.perceptual == "vgg19" and self.vgg19_weights is None:
            raise ConfigError(
                "the perceptual loss on vgg19 needs --recipe.helpers.vgg19-weights FILE (torchvision's state dict); "
                "or use --recipe.helpers.perceptual efficientnet-lite0"
            )
        if self.raft_weights is not None and not self.flow.startswith("raft-"):
            raise ConfigError(f"raft_weights belong to flow raft-small or raft-large, and flow is {self.flow}")
        if self.flow == "files" and self.flow_confidence != "photometric":
            raise ConfigError(
                f"flow files hold one direction only, so flow_confidence {self.flow_confidence} needs an estimator "
                "(--recipe.helpers.flow medium)"
            )
