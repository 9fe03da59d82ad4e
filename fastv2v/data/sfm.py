"""Cameras and depth from plain frames: structure from motion with pycolmap, then triangulated optical flow. Torch-free.

COLMAP gives a pose to each frame and a few thousand points; painting wants a point for most pixels. Dense depth comes
from DIS flow between frames that stand far enough apart: a pixel and the place it moved to are two rays that must meet.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.cameras import Camera, Float
from fastv2v.data.images import read_image
from fastv2v.data.registration import PosedDepth
from fastv2v.errors import ConfigError, DataError, MissingExtraError

logger = logging.getLogger(__name__)

Mask = Callable[[str, tuple[int, ...]], NDArray[np.bool_] | None]
"""Pixels of a frame (by stem and size) that show things that move."""

Notice = Callable[[str], None]
"""Called with what is being done, in a few words: minutes pass before the first frame has its depth."""

_CORNER_TO_CENTRE: Final = 0.5
"""COLMAP counts pixels from the corner of the first one, we from its centre."""


class NoMotionError(DataError):
    """A sequence whose cameras cannot be found; nothing is wrong with its files."""


@dataclass(frozen=True, kw_only=True)
class SfmConfig:
    """How plain frames are reconstructed."""

    max_features: int = 4096
    """Features that are looked for in each frame."""
    overlap: int = 15
    """Each frame is matched with so many frames after it, and with those 2, 4, 8, ... times as far; up to
    ``all_pairs`` frames every pair is matched, which finds returns best."""
    all_pairs: int = 80
    """Longest sequence of which all pairs are matched, in frames."""
    forward_motion: bool = False
    """The camera drives straight ahead: begin with a pair of frames that lies along the way."""
    focal: float | None = None
    """Focal length in pixels, where it is known. ``None``: found together with the poses."""
    min_registered: float = 0.5
    """Share of the frames that must get a pose."""
    neighbours: int = 4
    """Depth of a frame comes from flow to so many frames on either side; those that stand too near are no help."""
    min_angle: float = 1.0
    """Two rays of a point must differ by so many degrees."""
    max_error: float = 1.5
    """How far in pixels a point may project from where the flow says it is."""
    seed: int = 0
    """Of COLMAP's random choices."""
    num_threads: int = 2
    """Threads of COLMAP."""

    def __post_init__(self) -> None:
        low = {"max_features": 100, "overlap": 1, "all_pairs": 2, "neighbours": 1, "num_threads": 1}
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.focal is not None and self.focal <= 0:
            raise ConfigError(f"focal must be above 0 pixels, got {self.focal}")
        if not 0 < self.min_registered <= 1:
            raise ConfigError(f"min_registered must be above 0 and at most 1, got {self.min_registered}")
        if not 0 < self.min_angle < 90 or self.max_error <= 0:
            raise ConfigError(
                f"min_angle must lie between 0 and 90 degrees and max_error be above 0 pixels, got {self.min_angle} "
                f"and {self.max_error}"
            )


class Reconstruction(NamedTuple):
    """What structure from motion found."""

    camera: Camera
    """One for all frames."""
    poses: Mapping[str, Float]
    """Camera-to-world 4x4 of each registered frame, by stem; in no unit."""
    num_points: int
    """Sparse points."""
    error: float
    """Mean distance of a sparse point's projection from its feature, in pixels."""


def reconstruct(
    frames: Mapping[str, Path], config: SfmConfig, *, excluded: Mask | None = None, notice: Notice | None = None
) -> Iterator[PosedDepth | None]:
    """Camera and depth of each frame of a sequence.

    Args:
        frames: pictures by stem, in order of time, all of one size.
        config: how.
        excluded: says which pixels show things that move; they get no depth, and no features are taken from them.
        notice: is told what is being done.

    Yields:
        For each frame its depth (0 where unknown) with camera and pose, ``None`` where no pose was found.

    Raises:
        NoMotionError: before the first frame, if no camera motion is found, or for too few frames; the message says
            what to try.
        DataError: if a picture is damaged or of another size.
        MissingExtraError: if pycolmap is not installed.
    """
    found = find_poses(frames, config, excluded=excluded, notice=notice)
    if notice is not None:
        notice("depth from optical flow")
    order = list(found.poses)
    grey: dict[str, NDArray[np.uint8]] = {}
    for stem in frames:
        if stem not in found.poses:
            yield None
            continue
        place = order.index(stem)
        window = order[max(place - config.neighbours, 0) : place + 1 + config.neighbours]
        grey = {
            other: grey[other] if other in grey else cv2.cvtColor(read_image(frames[other]), cv2.COLOR_RGB2GRAY)
            for other in window
        }
        others = [(grey[other], found.poses[other]) for other in window if other != stem]
        depth = triangulated_depth(grey[stem], found.poses[stem], others, found.camera, config)
        mask = None if excluded is None else excluded(stem, depth.shape)
        yield PosedDepth(depth, found.camera, found.poses[stem], mask)


def find_poses(
    frames: Mapping[str, Path], config: SfmConfig, *, excluded: Mask | None = None, notice: Notice | None = None
) -> Reconstruction:
    """Where the camera stood, by structure from motion.

    Args:
        frames: as for ``reconstruct``.
        config: how.
        excluded: as for ``reconstruct``.
        notice: as for ``reconstruct``.

    Returns:
        The largest connected part of the sequence.

    Raises:
        NoMotionError: as ``reconstruct``.
        DataError: as ``reconstruct``.
        MissingExtraError: if pycolmap is not installed.
    """
    colmap = import_pycolmap()
    with tempfile.TemporaryDirectory(prefix="fastv2v-sfm-") as name:
        models = _run_colmap(colmap, frames, config, Path(name), excluded, notice or (lambda text: None))
        if not models:
            raise NoMotionError(
                f"structure from motion found no camera motion in {_range(frames)}; the camera must move sideways past "
                "still things with texture: try --sfm.forward-motion, --sfm.focal, more --sfm.max-features, or give "
                "depth and poses"
            )
        largest = max(models, key=lambda model: model.num_reg_images())
        images = [image for image in largest.images.values() if image.has_pose]
        stems = list(frames)
        poses = {stems[int(Path(image.name).stem)]: _pose(image) for image in images}
        (camera,) = {image.camera_id: largest.cameras[image.camera_id] for image in images}.values()
        focal, x, y, radial = camera.params
        intrinsics = np.array([[focal, 0, x - _CORNER_TO_CENTRE], [0, focal, y - _CORNER_TO_CENTRE], [0, 0, 1]])
        found = Reconstruction(
            Camera(intrinsics, float(radial)),
            {stem: poses[stem] for stem in frames if stem in poses},
            largest.num_points3D(),
            largest.compute_mean_reprojection_error(),
        )
    share = len(found.poses) / len(frames)
    without = [stem for stem in frames if stem not in found.poses]
    if share < config.min_registered:
        raise NoMotionError(
            f"structure from motion registered {len(found.poses)} of {len(frames)} frames of {_range(frames)} in its "
            f"largest of {len(models)} parts, and min_registered is {config.min_registered:g}; not {_few(without)}: "
            "try more --sfm.max-features or --sfm.overlap, cut the sequence at sudden changes, or lower "
            "--sfm.min-registered"
        )
    if without:
        logger.warning(
            "structure from motion: %d of %d frames got no pose (%s)", len(without), len(frames), _few(without)
        )
    return found


def triangulated_depth(
    picture: NDArray[np.uint8],
    pose: Float,
    others: list[tuple[NDArray[np.uint8], Float]],
    camera: Camera,
    config: SfmConfig,
) -> NDArray[np.float32]:
    """Depth of a frame from optical flow to others whose poses are known.

    Args:
        picture: grey, (H, W).
        pose: its camera-to-world matrix.
        others: grey pictures of the same size with their poses.
        camera: of all of them.
        config: how much parallax is needed, and how much error is allowed.

    Returns:
        (H, W) along the optical axis, in the unit of the poses: the median over all frames that agree with the flow
        within ``max_error``; 0 where none does, or where they differ by more than a tenth.

    Source:
        The depth at which a ray comes nearest to another one (midpoint triangulation).
    """
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    height, width = picture.shape
    rays = camera.rays((height, width)).reshape(-1, 3)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    found = []
    for other, other_pose in others:
        flow = flow_of.calc(picture, other, None).astype(np.float64)
        back = flow_of.calc(other, picture, None)
        at_x, at_y = columns + flow[..., 0], rows + flow[..., 1]
        returned = cv2.remap(back, at_x.astype(np.float32), at_y.astype(np.float32), cv2.INTER_LINEAR)
        closed = np.hypot(*np.moveaxis(flow + returned, -1, 0)) < config.max_error
        inside = (at_x >= 0) & (at_x <= width - 1) & (at_y >= 0) & (at_y <= height - 1)
        to_here = np.linalg.inv(pose) @ other_pose
        depth, angle = _meeting(rays, camera.rays_through(at_x.ravel(), at_y.ravel()), to_here)
        there = np.linalg.inv(to_here)
        seen = rays * depth[:, None] @ there[:3, :3].T + there[:3, 3]
        in_front = (depth > 0) & (seen[:, 2] > 0)
        x, y = camera.project(np.where(in_front[:, None], seen, 1.0))
        miss = np.hypot(x - at_x.ravel(), y - at_y.ravel())
        good = in_front & (angle > config.min_angle) & (miss < config.max_error) & (closed & inside).ravel()
        found.append(np.where(good, depth, np.nan))
    if not found:
        return np.zeros((height, width), np.float32)
    return _agreed(np.stack(found)).reshape(height, width).astype(np.float32)


def import_pycolmap() -> ModuleType:
    """The ``pycolmap`` module.

    Raises:
        MissingExtraError: if it is not installed, or another version than the extra names.
    """
    try:
        import pycolmap
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "structure from motion needs the 'world' extra: pip install \"fastv2v[world]\""
        ) from error
    if not hasattr(pycolmap, "FeatureExtractionOptions"):
        raise MissingExtraError(f'pycolmap {pycolmap.__version__} is too old: pip install "fastv2v[world]"')
    module: ModuleType = pycolmap
    return module


def _run_colmap(
    colmap: ModuleType, frames: Mapping[str, Path], config: SfmConfig, work: Path, excluded: Mask | None, notice: Notice
) -> list[Any]:
    """All connected parts that COLMAP finds."""
    pictures, masks, database = work / "pictures", work / "masks", work / "database.db"
    pictures.mkdir()
    masks.mkdir()
    size: tuple[int, ...] = ()
    for number, (stem, path) in enumerate(frames.items()):
        picture = read_image(path)
        size = size or picture.shape[:2]
        if picture.shape[:2] != size:
            raise DataError(f"{path} is of another size than the frames before it; scale all of them to one")
        # Numbered anew: neighbours in time must be neighbours by name.
        cv2.imwrite(str(pictures / f"{number:06d}.png"), picture[..., ::-1])
        mask = None if excluded is None else excluded(stem, size)
        if mask is not None:
            cv2.imwrite(str(masks / f"{number:06d}.png.png"), np.where(mask, 0, 255).astype(np.uint8))
    colmap.set_random_seed(config.seed)
    colmap.logging.minloglevel = colmap.logging.Level.ERROR.value  # its progress is no concern of our caller's
    reading = colmap.ImageReaderOptions(camera_model="SIMPLE_RADIAL")
    if config.focal is not None:
        reading.camera_params = f"{config.focal},{size[1] / 2},{size[0] / 2},0"
    if any(masks.iterdir()):
        reading.mask_path = masks
    extraction = colmap.FeatureExtractionOptions(use_gpu=False, num_threads=config.num_threads)
    extraction.sift.max_num_features = config.max_features
    matching = colmap.FeatureMatchingOptions(use_gpu=False, num_threads=config.num_threads)
    mapping = colmap.IncrementalPipelineOptions(num_threads=config.num_threads)
    if config.focal is not None:
        mapping.ba_refine_focal_length = False
    if config.forward_motion:
        mapping.mapper.init_max_forward_motion = 1.0
        mapping.mapper.init_min_tri_angle = 2.0
    notice(f"features of {len(frames)} frames")
    colmap.extract_features(
        database, pictures, camera_mode=colmap.CameraMode.SINGLE, reader_options=reading, extraction_options=extraction
    )
    notice("matching features")
    if len(frames) <= config.all_pairs:
        colmap.match_exhaustive(database, matching_options=matching)
    else:
        pairing = colmap.SequentialPairingOptions(overlap=config.overlap, quadratic_overlap=True)
        colmap.match_sequential(database, matching_options=matching, pairing_options=pairing)
    notice("placing cameras")
    placed = itertools.count(3)  # it begins with a pair
    models = colmap.incremental_mapping(
        database,
        pictures,
        work / "model",
        options=mapping,
        next_image_callback=lambda: notice(f"placing cameras ({next(placed)} so far)"),
    )
    return list(models.values())


def _pose(image: Any) -> Float:
    """Camera-to-world 4x4 of a registered image."""
    pose = np.eye(4)
    pose[:3] = image.cam_from_world().inverse().matrix()
    return pose


def _meeting(rays: Float, others: Float, to_here: Float) -> tuple[Float, Float]:
    """Depth along ``rays`` where they come nearest to the others, and the angle between them in degrees."""
    directions = others @ to_here[:3, :3].T
    origin = to_here[:3, 3]
    aa, bb, ab = (rays * rays).sum(1), (directions * directions).sum(1), (rays * directions).sum(1)
    determinant = aa * bb - ab * ab
    # Least squares of a * ray - b * direction = origin, for a.
    depth = (bb * (rays @ origin) - ab * (directions @ origin)) / np.maximum(determinant, 1e-15)
    angle = np.degrees(np.arcsin(np.clip(np.sqrt(np.maximum(determinant, 0) / (aa * bb)), 0, 1)))
    return depth, angle


def _agreed(depths: Float) -> Float:
    """The median over the first axis; 0 where nothing was measured or the middle half spreads over a tenth."""
    counts = np.isfinite(depths).sum(0)
    ordered = np.sort(depths, axis=0)  # what is unknown comes last; NumPy's own percentiles take seconds around it
    last = np.maximum(counts - 1, 0)
    low, middle, high = (
        np.take_along_axis(ordered, index[None], 0)[0] for index in (last // 4, last // 2, last - last // 4)
    )
    return np.where((counts > 0) & (high - low <= 0.1 * middle), middle, 0.0)


def _range(frames: Mapping[str, Path]) -> str:
    paths = list(frames.values())
    return f"{paths[0].parent} ({len(paths)} frames)"


def _few(stems: list[str]) -> str:
    return ", ".join(stems[:4]) + (", ..." if len(stems) > 4 else "")
