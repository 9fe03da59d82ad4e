"""What a clip consists of: the street, who moves how, the camera's way, the light of the day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from fastv2v.data.world.config import WorldConfig
from fastv2v.data.world.geometry import Blobs, Float, Point, Quads, place
from fastv2v.data.world.textures import fractal_noise

CAMERA_HEIGHT = 1.5
CAMERA_LANE = 1.6
KERB_HEIGHT = 0.13


class Street(NamedTuple):
    """The centre line, x = sum of two slow sines of z."""

    amplitude: Float  # (2,)
    wavenumber: Float  # (2,)
    phase: Float  # (2,)

    def centre(self, s: NDArray[np.floating] | float) -> NDArray[np.floating]:
        """Lateral position in metres of the centre line at distance s."""
        a, k, p = (np.asarray(v, getattr(s, "dtype", np.float64)) for v in self)
        return a[0] * np.sin(k[0] * s + p[0]) + a[1] * np.sin(k[1] * s + p[1])

    def heading(self, s: NDArray[np.floating] | float) -> NDArray[np.floating]:
        """Direction of the street at s, radians from +z towards +x."""
        slope = (self.amplitude * self.wavenumber * np.cos(np.multiply.outer(s, self.wavenumber) + self.phase)).sum(-1)
        return np.arctan(slope)

    def pose(self, s: float, t: float, turn: float = 0.0) -> Float:
        """Pose at distance s along and t metres right of the centre line, looking down the street plus ``turn``."""
        return place(float(self.centre(s)) + t, s, float(self.heading(s)) + turn)


class Light(NamedTuple):
    """Daylight, shared by all surfaces of a clip."""

    towards_sun: Float  # (3,) unit
    sun: Float  # (3,) RGB factor on a surface that faces the sun
    ambient: Float  # (3,) RGB factor everywhere
    haze: Float  # (3,) RGB 0..255
    haze_distance: float  # metres
    sky: NDArray[np.uint8]  # (h, w, 3): a full turn across, from 75 degrees up to 15 below the horizon


class Mover(NamedTuple):
    """An object on the street; number 0 is the still world.

    It moves down the street (against it where ``turned``) at ``speed`` m/s, or keeps its distance from the camera where
    it ``follows``. A limb turns about ``pivot`` by lean + swing * sin(rate * time + phase) radians.
    """

    s: float
    t: float
    speed: float
    follows: bool = False
    turned: bool = False
    pivot: Point = (0.0, 0.0, 0.0)
    swing: float = 0.0
    rate: float = 0.0
    phase: float = 0.0
    lean: float = 0.0


class Motion(NamedTuple):
    """All movers of a clip, one entry each."""

    s: Float
    t: Float
    speed: Float
    follows: Float
    turned: Float
    pivot: Float
    swing: Float
    rate: Float
    phase: Float
    lean: Float

    def poses(self, street: Street, time: float, travelled: float) -> Float:
        """Object-to-world transforms at a time, (O, 4, 4).

        Args:
            street: where they move.
            time: seconds since the first frame.
            travelled: metres the camera has driven, for those who follow it.
        """
        s = self.s + self.speed * np.where(self.turned > 0, -time, time) + self.follows * travelled
        yaw = street.heading(s) + np.pi * self.turned
        angle = self.lean + self.swing * np.sin(self.rate * time + self.phase)
        out = np.zeros((len(s), 4, 4))
        cy, sy, ca, sa = np.cos(yaw), np.sin(yaw), np.cos(angle), np.sin(angle)
        # Ry(yaw) @ Rx(angle)
        out[:, 0, :3] = np.stack([cy, sy * sa, sy * ca], 1)
        out[:, 1, :3] = np.stack([np.zeros_like(ca), ca, -sa], 1)
        out[:, 2, :3] = np.stack([-sy, cy * sa, cy * ca], 1)
        px, py, pz = self.pivot.T
        out[:, 0, 3] = street.centre(s) + self.t + cy * px + sy * pz
        out[:, 1, 3] = py
        out[:, 2, 3] = s - sy * px + cy * pz
        out[:, 3, 3] = 1
        out[0] = np.eye(4)
        return out


def motion_of(movers: Sequence[Mover]) -> Motion:
    """The movers as arrays."""
    return Motion(*(np.array(column, float) for column in zip(*movers, strict=True)))


class Caster(NamedTuple):
    """Something that throws a shadow on the ground: an upright box (x, z half sizes and height) at a pose."""

    obj: int
    pose: Float
    half_x: float
    half_z: float
    height: float


class Scene(NamedTuple):
    """Everything about a clip that does not depend on the frame."""

    street: Street
    light: Light
    quads: Quads
    blobs: Blobs
    motion: Motion
    still_casters: tuple[Caster, ...]
    moving_casters: tuple[Caster, ...]
    road_variants: NDArray[np.int32]
    """Road texture number of each ROAD_PERIOD, from ``ground_start``."""
    pavement: str
    ground_start: float
    ground_end: float
    mottle: NDArray[np.float32]
    """Large-scale brightness of the ground, a tile of 64 m by 64 m at 4 texels per metre."""


class CameraPath(NamedTuple):
    """The camera's pose for every frame."""

    camera_to_world: Float  # (T, 4, 4)
    travelled: Float  # (T,) metres driven since the first frame


def pick(rng: Generator, low: float, high: float) -> float:
    """A uniform random number."""
    return float(rng.uniform(low, high))


def plan_street(rng: Generator) -> Street:
    """A gently winding street."""
    length = rng.uniform((110, 45), (180, 70))
    amplitude = rng.uniform((1.5, 0.1), (3.2, 0.35)) * rng.choice((-1, 1), 2)
    phase = rng.uniform(0, 2 * np.pi, 2)
    return Street(amplitude, 2 * np.pi / length, phase)


def plan_camera(config: WorldConfig, street: Street, rng: Generator) -> CameraPath:
    """Where the camera is in each frame."""
    time = np.arange(config.num_frames) / config.fps
    if config.camera == "drive":
        speed, wobble = pick(rng, 5.5, 8.0), pick(rng, 0.4, 1.0)
        rate, phase = pick(rng, 0.25, 0.5), pick(rng, 0, 6.28)
        travelled = speed * time + wobble / rate * (np.sin(rate * time + phase) - np.sin(phase))
        bump, sway = rng.uniform(0, 6.28, 2), rng.uniform(0, 6.28)
        height = CAMERA_HEIGHT + 0.015 * np.sin(9.0 * time + bump[0]) + 0.01 * np.sin(14.3 * time + bump[1])
        pitch = 0.004 * np.sin(8.0 * time + bump[1]) - 0.005
        side = CAMERA_LANE + 0.18 * np.sin(0.7 * time + sway)
        yaw = street.heading(travelled + 6.0) + 0.018 * np.sin(0.9 * time + sway + 1)
        roll = 0.004 * np.sin(3.1 * time + bump[0])
    else:
        away = np.sin(np.pi * np.minimum(np.arange(config.num_frames), np.arange(config.num_frames)[::-1])
                      / (config.num_frames - 1)) ** 2  # fmt: skip
        turn = float(rng.choice((-1, 1)))
        travelled = 1.5 * away
        height, pitch = CAMERA_HEIGHT + 0.25 * away, -0.005 - 0.02 * away
        side = CAMERA_LANE + turn * 2.6 * away - CAMERA_LANE * away
        yaw = street.heading(6.0) + turn * 0.55 * away
        roll = np.zeros_like(time)
    poses = np.zeros((config.num_frames, 4, 4))
    for i in range(config.num_frames):
        cp, sp, cr, sr = np.cos(pitch[i]), np.sin(pitch[i]), np.cos(roll[i]), np.sin(roll[i])
        tilt, bank = np.eye(4), np.eye(4)
        tilt[1:3, 1:3] = [[cp, -sp], [sp, cp]]
        bank[:2, :2] = [[cr, -sr], [sr, cr]]
        x = float(street.centre(travelled[i])) + side[i]
        poses[i] = place(x, travelled[i], yaw[i], -height[i]) @ tilt @ bank
    return CameraPath(poses, travelled - travelled[0])


def plan_light(rng: Generator) -> Light:
    """One of four kinds of day, slightly varied."""
    kinds = (  # sun, ambient, zenith, horizon, cloud cover, haze distance
        ((0.80, 0.76, 0.64), (0.56, 0.60, 0.68), (84, 138, 208), (198, 216, 230), 0.46, 330.0),
        ((0.84, 0.68, 0.46), (0.55, 0.56, 0.62), (108, 148, 198), (240, 218, 186), 0.44, 260.0),
        ((0.22, 0.22, 0.22), (0.86, 0.88, 0.90), (162, 172, 184), (210, 214, 218), 0.85, 220.0),
        ((0.64, 0.66, 0.68), (0.58, 0.62, 0.69), (112, 154, 204), (216, 224, 230), 0.60, 240.0),
    )
    sun, ambient, zenith, horizon, cover, distance = kinds[rng.choice(4, p=(0.4, 0.25, 0.15, 0.2))]
    # The sun stands roughly along the street, so that light falls between the houses.
    elevation = np.deg2rad(pick(rng, 38, 58))
    azimuth = np.deg2rad(pick(rng, 25, 65)) * rng.choice((-1, 1)) + np.pi * (rng.random() < 0.5)
    flat = np.cos(elevation)
    towards = np.array([flat * np.sin(azimuth), -np.sin(elevation), flat * np.cos(azimuth)])
    gain = pick(rng, 0.95, 1.05)
    haze = 0.75 * np.array(horizon, float) + 0.25 * np.array(zenith, float)
    sky = _paint_sky(rng, np.array(zenith, float), np.array(horizon, float), cover, towards, np.array(sun))
    return Light(towards, gain * np.array(sun), gain * np.array(ambient), haze, distance * pick(rng, 0.85, 1.2), sky)


def _paint_sky(
    rng: Generator, zenith: Float, horizon: Float, cover: float, towards_sun: Float, sun: Float
) -> NDArray[np.uint8]:
    """A panorama: gradient, glow around the sun, and clouds that flatten towards the horizon."""
    height, width = 384, 1536
    elevation = np.deg2rad(75 - 90 * (np.arange(height) + 0.5) / height)[:, None]
    azimuth = 2 * np.pi * (np.arange(width) + 0.5)[None] / width
    blend = np.clip(np.sin(np.maximum(elevation, 0)) ** 0.55, 0, 1)[..., None]
    sky = np.broadcast_to(horizon + (zenith - horizon) * blend, (height, width, 3)).copy()
    cosine = np.cos(elevation) * (towards_sun[0] * np.sin(azimuth) + towards_sun[2] * np.cos(azimuth))
    cosine = np.maximum(cosine - np.sin(elevation) * towards_sun[1], 0)
    sky += (60 * cosine**24 + 24 * cosine**4)[..., None] * sun
    # Clouds lie on a plane overhead: look them up in a tileable texture by where the ray meets that plane.
    field_ = fractal_noise(rng, (512, 512), 120, 6)
    reach = 1 / (np.sin(np.maximum(elevation, 0.0)) + 0.12)
    maps = [np.ascontiguousarray(70 * reach * f(azimuth) % 512, np.float32) for f in (np.sin, np.cos)]
    density = cv2.remap(field_, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    threshold = 1.1 - 2.0 * cover
    cloud = np.clip((density - threshold) / 0.9, 0, 1) ** 0.8 * np.clip(elevation / 0.12, 0, 1)
    lit = np.clip(1.04 - 0.13 * np.clip(density - threshold - 0.5, 0, 2), 0.6, 1.1)[..., None]
    white = (np.array((238, 240, 242)) * 0.6 + 0.4 * horizon) * lit
    sky += (white - sky) * (0.92 * cloud)[..., None]
    return np.clip(sky, 0, 255).astype(np.uint8)
