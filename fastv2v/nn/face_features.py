"""Face features: a face to be drawn borrows the look of its parts from the most similar one of a bank of faces."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fastv2v.data.face import PARTS, crop_padded, face_crop, part_labels, read_landmarks
from fastv2v.data.folder import FrameReader, VideoFolder
from fastv2v.data.images import read_bytes, read_image
from fastv2v.data.loader import read_clip
from fastv2v.data.modalities import MODALITIES
from fastv2v.data.transforms import apply_geometry, draw_geometry
from fastv2v.errors import ConfigError, DataError, ShapeError
from fastv2v.nn.features import FeatureEncoder, pool_instances
from fastv2v.run import write_bytes

# Shape letters beyond those of the contracts: P part labels, F feature channels, n images of a bank.

NUM_PARTS: Final = 1 + max(part.label for part in PARTS)
"""P: the part labels of a face, and 0 for what lies outside of it."""

_SCHEMA: Final = 1


@dataclass(frozen=True)
class PartVectors:
    """What the parts of some faces look like."""

    means: Tensor
    """Mean features of each part, (n, P, F) float32; 0 for a part that is not seen."""
    seen: Tensor
    """Which parts are seen, (n, P) bool."""

    def take(self, images: Tensor) -> PartVectors:
        """Those of some images, (m,)."""
        return PartVectors(self.means[images], self.seen[images])

    def paint(self, parts: Tensor) -> Tensor:
        """Fill the parts of faces.

        Args:
            parts: part labels, (n, H, W), any integer type.

        Returns:
            (n, F, H, W) float32; 0 where a part lies that is not seen.
        """
        image = torch.arange(len(parts), device=parts.device).view(-1, 1, 1)
        return self.means[image, parts.long()].movedim(-1, 1)


@dataclass(frozen=True)
class FaceBank:
    """The faces of a data set, as one encoder sees them."""

    vectors: PartVectors
    """One entry for each image."""
    names: tuple[str, ...]
    """``sequence/frame`` of each image."""
    encoder: str
    """``encoder_digest`` of the encoder: its vectors mean nothing to another one."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def channels(self) -> int:
        """F."""
        return self.vectors.means.shape[2]

    def to(self, device: torch.device | str) -> FaceBank:
        """Copy the vectors to ``device``."""
        vectors = PartVectors(self.vectors.means.to(device), self.vectors.seen.to(device))
        return FaceBank(vectors, self.names, self.encoder)

    def nearest(self, faces: PartVectors) -> Tensor:
        """The most similar image for each face.

        Compared are the images that show most of the parts of the face, as a rule all of them; the distance is the sum
        of squared differences over these parts and all channels.

        Args:
            faces: of m faces.

        Returns:
            Positions in the bank, (m,) int64; the first of several equally near ones.

        Source:
            The face features of Wang et al., "Video-to-Video Synthesis", NeurIPS 2018, as its published code finds
            them. There, what a face does not show is compared too, with whatever lies in memory.
        """
        found = []
        for means, seen in zip(faces.means, faces.seen, strict=True):
            shared = self.vectors.seen & seen
            count = shared.sum(dim=1)
            squared = (self.vectors.means - means).square().sum(dim=2)
            distance = (squared * shared).sum(dim=1).masked_fill(count < count.max(), torch.inf)
            found.append(distance.argmin())
        return torch.stack(found)


def part_vectors(features: Tensor, parts: Tensor) -> PartVectors:
    """Average features over the parts of each face.

    Args:
        features: (n, F, H, W).
        parts: part labels, (n, H, W), any integer type.

    Raises:
        ShapeError: if the shapes do not match.
        DataError: if a label is unknown.
    """
    if parts.numel() and not 0 <= int(parts.min()) <= int(parts.max()) < NUM_PARTS:
        raise DataError(f"part labels of a face are 0 to {NUM_PARTS - 1}, got up to {int(parts.max())}")
    pooled = pool_instances(features, parts)
    count = len(features)
    # The groups come in ascending order of (image, label), each of which is there once.
    places = torch.unique(torch.arange(count, device=parts.device).view(-1, 1, 1) * NUM_PARTS + parts.long())
    means = pooled.means.new_zeros(count * NUM_PARTS, features.shape[1])
    means[places] = pooled.means
    seen = torch.zeros(count * NUM_PARTS, dtype=torch.bool, device=parts.device)
    seen[places] = True
    return PartVectors(means.unflatten(0, (count, NUM_PARTS)), seen.unflatten(0, (count, NUM_PARTS)))


def read_parts(folder: VideoFolder, sequence_index: int, indices: Sequence[int]) -> Tensor:
    """Part labels of some frames, cropped and scaled as their frames are in testing.

    They are drawn from the landmarks at the size of the file; scaling takes the nearest pixel.

    Args:
        folder: a data set of faces.
        sequence_index: which sequence.
        indices: which frames of it, T of them, at least one.

    Returns:
        (T, H, W) uint8.

    Raises:
        ConfigError: if these are no faces, or the geometry is of a random mode.
        DataError: if a file is damaged.
    """
    if folder.config.condition != "face":
        raise ConfigError(f"part labels are those of faces, and the condition is '{folder.config.condition}'")
    sequence = folder.sequences[sequence_index]
    frame = read_image(sequence.path("frames", indices[0]))
    size = (frame.shape[0], frame.shape[1])

    def landmarks(index: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        path = sequence.path("keypoints", index)
        return read_landmarks(read_bytes(path, MODALITIES["keypoints"].noun), str(path))

    box = face_crop(landmarks(0), size)
    geometry = draw_geometry(folder.config.geometry, (box.bottom - box.top, box.right - box.left), None, "test")
    drawn = (crop_padded(part_labels(landmarks(i), size), box) for i in indices)
    return torch.from_numpy(np.stack([apply_geometry(geometry, labels, "label") for labels in drawn]))


def encoder_digest(encoder: FeatureEncoder) -> str:
    """A short text that changes with any weight of the encoder."""
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def build_bank(
    encoder: FeatureEncoder,
    folder: VideoFolder,
    *,
    every: int = 1,
    window: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> FaceBank:
    """Look at the faces of a data set.

    Args:
        encoder: in evaluation mode.
        folder: a data set of faces.
        every: look at every so many-th frame.
        window: frames that are held at a time.
        progress: called with (frames done, frames in all).

    Returns:
        One entry for each frame looked at, in the order of the data set.

    Raises:
        ConfigError: if ``every`` or ``window`` is below 1, or these are no faces.
        DataError: if a file is damaged.
        ShapeError: if the frames do not suit the encoder.
    """
    if every < 1 or window < 1:
        raise ConfigError(f"every and window must be at least 1, got {every} and {window}")
    device = next(encoder.parameters()).device
    reader = FrameReader(folder, cache_mb=0)
    total = sum(len(range(0, length, every)) for length in folder.lengths)
    found: list[PartVectors] = []
    names: list[str] = []
    for i, sequence in enumerate(folder.sequences):
        geometry = draw_geometry(folder.config.geometry, reader.image_size(i), None, "test")
        chosen = range(0, len(sequence), every)
        for first in range(0, len(chosen), window):
            indices = chosen[first : first + window]
            frames = read_clip(folder, i, indices, geometry, reader=reader).frames[0]
            seen = part_vectors(encoder(frames.to(device)).cpu(), read_parts(folder, i, indices))
            found.append(seen)
            names += [f"{sequence.name}/{sequence.stems[index]}" for index in indices]
            if progress is not None:
                progress(len(names), total)
    vectors = PartVectors(torch.cat([x.means for x in found]), torch.cat([x.seen for x in found]))
    return FaceBank(vectors, tuple(names), encoder_digest(encoder))


@dataclass(frozen=True, kw_only=True)
class BorrowedFeatures:
    """Finds the features of faces that are to be drawn in a bank.

    Raises:
        ConfigError: if the bank was made with another encoder or has no such face, or neither is given.
    """

    bank: FaceBank
    """On the device of the frames."""
    encoder: FeatureEncoder | None = None
    """In evaluation mode; finds the most similar face. Not needed for a chosen one."""
    face: int | None = None
    """Position in the bank of the face to borrow from, whatever the real one looks like."""

    def __post_init__(self) -> None:
        if self.encoder is None and self.face is None:
            raise ConfigError("features are borrowed from a chosen face, or from the one that an encoder finds")
        if self.encoder is not None and self.bank.encoder != encoder_digest(self.encoder):
            raise ConfigError("the bank of faces was made with another encoder; make it again")
        if self.face is not None and not 0 <= self.face < len(self.bank):
            raise ConfigError(f"the bank has the faces 0 to {len(self.bank) - 1}; there is no number {self.face}")

    @torch.no_grad()
    def __call__(self, frames: Tensor, parts: Tensor) -> Tensor:
        """Features for some faces.

        Args:
            frames: real frames, (n, 3, H, W) in [-1, 1]; not looked at where a face was chosen.
            parts: their part labels, (n, H, W).

        Returns:
            (n, F, H, W) float32.

        Raises:
            ShapeError: if shapes do not match or do not suit the encoder.
        """
        if self.face is None and self.encoder is not None:
            found = self.bank.nearest(part_vectors(self.encoder(frames), parts))
        else:
            found = torch.full((len(parts),), self.face or 0, device=parts.device)
        return self.bank.vectors.take(found).paint(parts)


def write_bank(path: Path, bank: FaceBank) -> None:
    """Write a bank, whole or not at all: arrays and a JSON header in an npz file, nothing pickled."""
    header = {"schema": _SCHEMA, "channels": bank.channels, "encoder": bank.encoder, "names": bank.names}
    file = io.BytesIO()
    np.savez(
        file,
        header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        means=bank.vectors.means.cpu().numpy(),
        seen=bank.vectors.seen.cpu().numpy(),
    )
    write_bytes(path, file.getvalue())


def read_bank(path: Path) -> FaceBank:
    """Read what ``write_bank`` wrote.

    Raises:
        DataError: if the file is missing, damaged or of another version.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            means, seen = arrays["means"], arrays["seen"]
            header = json.loads(arrays["header"].tobytes())
        return _bank(header, means, seen)
    except (OSError, KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no bank of faces of this version ({error}); have it made anew with the encoder"
        ) from error


def _bank(header: Mapping[str, Any], means: np.ndarray[Any, Any], seen: np.ndarray[Any, Any]) -> FaceBank:
    """The bank of a header and its arrays; any of the errors that ``read_bank`` expects where they disagree."""
    names = tuple(map(str, header["names"]))
    if header["schema"] != _SCHEMA:
        raise ValueError(f"schema {header['schema']}")
    if not names or means.shape != (len(names), NUM_PARTS, header["channels"]) or seen.shape != means.shape[:2]:
        raise ShapeError(f"{len(names)} faces of {header['channels']} channels, {means.shape} and {seen.shape}")
    if means.dtype != np.float32 or seen.dtype != np.bool_ or not np.isfinite(means).all():
        raise ValueError("means are no finite float32 numbers, or seen is not boolean")
    return FaceBank(PartVectors(torch.from_numpy(means), torch.from_numpy(seen)), names, str(header["encoder"]))
