"""Turn a planned clip into frames: shade what the rasterizer found, and follow every surface point in time."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from fastv2v.data.world.atlas import Atlas, build_atlas, lookup
from fastv2v.data.world.config import PAVEMENT, ROAD, SKY, TREE, WorldConfig, WorldFrame
from fastv2v.data.world.geometry import Float, moved_points
from fastv2v.data.world.planner import plan_scene
from fastv2v.data.world.points import PointNumbers
from fastv2v.data.world.raster import (
    KERB_FACE_ID,
    KERB_TOP_ID,
    LAWN_ID,
    NUM_GROUND,
    PAVEMENT_ID,
    ROAD_ID,
    SKY_ID,
    GBuffer,
    Surfaces,
    View,
    rasterize,
    ray_component,
    sample_grid,
)
from fastv2v.data.world.scene import Caster, Light, Scene, Street
from fastv2v.data.world.textures import ROAD_HALF_WIDTH, ROAD_PERIOD
from fastv2v.errors import ConfigError

MIN_DEPTH = 0.05
_MAP_SCALE, _MAP_HALF, _CHUNK = 6, 24.0, 64.0  # ground light map: texels per metre, metres each side, metres per piece
_LABEL_OF_GROUND = np.array([SKY, ROAD, PAVEMENT, PAVEMENT, PAVEMENT, TREE], np.uint8)


def render_clip(config: WorldConfig, clip: int, *, points: bool = False) -> Iterator[WorldFrame]:
    """Render one clip, frame after frame.

    Args:
        config: the world. Equal (config, clip) give equal frames, on every run.
        clip: clip number, 0 or more: another street, another day.
        points: also say which point of the world is seen at which pixel.

    Yields:
        ``config.num_frames`` frames in order of time.

    Raises:
        ConfigError: if the clip number is negative.
    """
    if clip < 0:
        raise ConfigError(f"clip must not be negative, got {clip}")
    return _frames(config, clip, points)


def _frames(config: WorldConfig, clip: int, points: bool) -> Iterator[WorldFrame]:
    atlas = build_atlas(config.seed)
    scene, camera = plan_scene(config, clip, atlas)
    xs, ys = sample_grid(config.size)
    shader = _Shader(scene, atlas, xs, ys)
    intrinsics = config.intrinsics
    numbers = PointNumbers(scene, camera, intrinsics) if points else None

    def moment(index: int) -> tuple[Float, Float]:
        poses = scene.motion.poses(scene.street, index / config.fps, float(camera.travelled[index]))
        return camera.camera_to_world[index], poses

    before, now = None, moment(0)
    for index in range(config.num_frames):
        after = moment(index + 1) if index + 1 < config.num_frames else None
        view = View(now[0], intrinsics, xs, ys)
        buffer, surfaces = rasterize(view, scene, now[1], atlas)
        tent = np.array([0.25, 0.5, 0.25])
        planes = shader.shade(view, buffer, surfaces, now[1])
        frame = cv2.merge([cv2.sepFilter2D(plane, -1, tent, tent)[1::2, 1::2] for plane in planes])
        if config.noise:
            rng = np.random.default_rng([config.seed, clip, 99, index])
            frame = frame + rng.normal(0, config.noise, frame.shape)
        labels, instances, objects = _identify(scene, surfaces, buffer.ids[1::2, 1::2])
        inverse = buffer.inverse_depth[1::2, 1::2]
        with np.errstate(divide="ignore"):
            depth = np.where(inverse > 0, 1 / inverse, np.float32(np.inf)).astype(np.float32)
        yield WorldFrame(
            frame=np.clip(np.rint(frame), 0, 255).astype(np.uint8),
            labels=labels,
            instances=instances,
            depth=depth,
            camera_to_world=now[0].copy(),
            intrinsics=intrinsics.copy(),
            flow_to_previous=None if before is None else _flow(config, depth, objects, now, before),
            flow_to_next=None if after is None else _flow(config, depth, objects, now, after),
            points=None if numbers is None else numbers.number(view, buffer, surfaces, now[1]),
        )
        if after is not None:
            before, now = now, after


def _identify(
    scene: Scene, surfaces: Surfaces, ids: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.int32]]:
    """Label, instance and object of each pixel."""
    quads, blobs = scene.quads, scene.blobs
    none = np.zeros(NUM_GROUND, np.int32)
    tables = (
        np.concatenate([_LABEL_OF_GROUND, quads.label[surfaces.quad], blobs.label[surfaces.blob]]),
        np.concatenate([none, quads.instance[surfaces.quad], blobs.instance[surfaces.blob]]).astype(np.uint16),
        np.concatenate([none, quads.obj[surfaces.quad], blobs.obj[surfaces.blob]]).astype(np.int32),
    )
    labels, instances, objects = (np.take(table, ids) for table in tables)
    return labels, instances, objects


def _flow(
    config: WorldConfig, depth: NDArray[np.float32], objects: NDArray[np.int32], now: tuple[Float, Float],
    then: tuple[Float, Float],
) -> NDArray[np.float32]:  # fmt: skip
    """Follow the surface point of every pixel from one moment to another.

    The point is taken in the coordinates of its object, moved with the object, and projected again; sky is a direction.

    Returns:
        (H, W, 2) displacement in pixels.
    """
    height, width = config.size
    k = config.intrinsics
    x, y = np.arange(width, dtype=np.float64)[None], np.arange(height, dtype=np.float64)[:, None]
    is_sky = np.isinf(depth)
    z = np.where(is_sky, 1.0, depth).astype(np.float64)
    points = np.stack(np.broadcast_arrays((x - k[0, 2]) / k[0, 0] * z, (y - k[1, 2]) / k[1, 1] * z, z), -1)
    world_to_then = np.linalg.inv(then[0])
    still = world_to_then @ now[0]
    moved = moved_points(still[:3], points)
    moved -= still[:3, 3] * is_sky[..., None]
    dynamic = objects > 0
    if dynamic.any():
        numbers = objects[dynamic]
        used, rows = np.unique(numbers, return_inverse=True)
        chain = world_to_then @ then[1][used] @ np.linalg.inv(now[1][used]) @ now[0]
        there = chain[rows]
        moved[dynamic] = (there[:, :3, :3] * points[dynamic][:, None]).sum(-1) + there[:, :3, 3]
    ahead = np.maximum(moved[..., 2], MIN_DEPTH)
    flow = np.empty((height, width, 2), np.float32)
    flow[..., 0] = moved[..., 0] / ahead * k[0, 0] + k[0, 2] - x
    flow[..., 1] = moved[..., 1] / ahead * k[1, 1] + k[1, 2] - y
    return flow


_Samples = tuple[
    NDArray[np.int32],  # tile
    NDArray[np.floating],  # u
    NDArray[np.floating],  # v
    NDArray[np.floating],  # mip level
    NDArray[np.floating],  # (3, N) light
    NDArray[np.floating],  # (3, N) light * (tint - 1), added where the tint mask says so
]


class _Shader:
    """Colours of a clip; keeps pieces of the ground's light map that frames share."""

    def __init__(self, scene: Scene, atlas: Atlas, xs: NDArray[np.float32], ys: NDArray[np.float32]) -> None:
        self._scene, self._atlas = scene, atlas
        shape = len(ys), len(xs)
        self._x: NDArray[np.float32] = np.broadcast_to(xs[None], shape).reshape(-1)
        self._y: NDArray[np.float32] = np.broadcast_to(ys[:, None], shape).reshape(-1)
        self._chunks: dict[int, NDArray[np.uint8]] = {}
        index = atlas.index
        names = {
            ROAD_ID: "road0",
            KERB_FACE_ID: "kerb",
            KERB_TOP_ID: "kerb",
            PAVEMENT_ID: scene.pavement,
            LAWN_ID: "grass",
        }
        self._ground_tile = np.array([index[names.get(i, "road0")] for i in range(NUM_GROUND)], np.int32)
        roads = [index[f"road{i}"] for i in range(int(scene.road_variants.max()) + 1)]
        self._road_tiles = np.array(roads, np.int32)[scene.road_variants]

    def shade(self, view: View, buffer: GBuffer, surfaces: Surfaces, poses: Float) -> list[NDArray[np.float32]]:
        """Colour every sample: red, green and blue planes, (h, w) float32 in 0..255."""
        light = self._scene.light
        ids, inverse = buffer.ids.reshape(-1), buffer.inverse_depth.reshape(-1)
        out = np.empty((3, ids.size), np.float32)
        first_blob = NUM_GROUND + len(surfaces.quad)
        sky = np.flatnonzero(ids == SKY_ID)
        ground = np.flatnonzero((ids > SKY_ID) & (ids < NUM_GROUND))
        quads = np.flatnonzero((ids >= NUM_GROUND) & (ids < first_blob))
        blobs = np.flatnonzero(ids >= first_blob)
        upward = np.add(*ray_component(view, 1)).reshape(-1)
        rays = [np.add(*ray_component(view, axis)).reshape(-1)[sky] for axis in (0, 2)]
        for plane, colour in zip(out, self._sky(rays[0], upward[sky], rays[1]), strict=True):
            plane[sky] = colour
        parts = (
            self._ground(view, buffer, ground, poses),
            self._quads(surfaces, ids[quads] - NUM_GROUND, quads, inverse[quads], poses),
            self._blobs(view, surfaces, ids[blobs] - first_blob, blobs, inverse[blobs]),
        )
        picked = np.concatenate([ground, quads, blobs])
        tile, u, v, level = (np.concatenate(columns) for columns in zip(*(part[:4] for part in parts), strict=True))
        lit, painted = (np.concatenate([part[k] for part in parts], axis=1) for k in (4, 5))
        texels = self._atlas.sample(tile, u, v, level)
        mask = texels[3] * np.float32(1 / 255)
        depth = 1 / inverse[picked]
        # Corners and feet of walls get less of the sky's light.
        height = upward[picked] * depth
        height += np.float32(view.camera_to_world[1, 3])
        height[: len(ground)] = -9.0
        shade = 1 - np.float32(0.33) * np.exp(np.minimum(height * np.float32(1 / 0.7), 0))
        shade[: len(ground)] = 1
        clear = np.exp(depth * np.float32(-1 / light.haze_distance))
        shade *= clear
        for channel, haze in enumerate(light.haze.tolist()):
            colour = painted[channel]
            colour *= mask
            colour += lit[channel]
            colour *= texels[channel]
            colour *= shade
            colour += np.float32(haze) * (1 - clear)
            out[channel][picked] = colour
        np.clip(out, 0, 255, out=out)
        return list(out.reshape(3, *buffer.ids.shape))

    def _sky(self, x: NDArray[np.float32], y: NDArray[np.float32], z: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
        """Look the panorama up by direction."""
        panorama = self._scene.light.sky
        height, width = panorama.shape[:2]
        turn = np.arctan2(x, z) * np.float32(width / (2 * np.pi))
        rise = np.arctan2(-y, np.hypot(x, z))
        row = (np.float32(np.deg2rad(75)) - rise) * np.float32(height / np.deg2rad(90))
        row = np.clip(row, 0.5, height - 0.5)  # the border mode wraps, as it must for azimuth only
        return lookup(panorama, turn, row, cv2.BORDER_WRAP)

    def _ground(self, view: View, buffer: GBuffer, picked: NDArray[np.intp], poses: Float) -> _Samples:
        """Road, kerb, pavement and lawn."""
        scene, light = self._scene, self._scene.light
        kind = buffer.ids.reshape(-1)[picked]
        t, s = buffer.street_t.reshape(-1)[picked], buffer.street_s.reshape(-1)[picked]
        period = ((s - np.float32(scene.ground_start)) * np.float32(1 / ROAD_PERIOD)).astype(np.int32)
        road = kind == ROAD_ID
        road_tile = np.take(self._road_tiles, period, mode="clip")
        tile = np.where(road, road_tile, np.take(self._ground_tile, kind))
        per_metre = np.array([(1, 1), (0.5 / ROAD_HALF_WIDTH, 1 / ROAD_PERIOD), (0, 0.25), (0, 0.25), (0.25, 0.25),
                              (0.3, 0.3)], np.float32)  # fmt: skip
        u = (t + np.float32(ROAD_HALF_WIDTH)) * np.take(per_metre[:, 0], kind)
        v = (s - np.float32(scene.ground_start)) * np.take(per_metre[:, 1], kind)
        kerb = (kind == KERB_FACE_ID) | (kind == KERB_TOP_ID)
        u[kerb], v[kerb] = v[kerb], np.float32(0.5)  # the kerb's stones run along the street
        inverse = buffer.inverse_depth.reshape(-1)[picked]
        texels = np.where(road, np.float32(512 / (2 * ROAD_HALF_WIDTH)), np.float32(64.0))
        step = 1 / (2 * view.intrinsics[0, 0] * np.sqrt(max(-view.camera_to_world[1, 3], 0.1)))
        # Half a level sharper than the mean of both directions: along the street the picture is supersampled anyway.
        level = np.log2(texels * np.float32(step) / (inverse * np.sqrt(inverse))) - np.float32(0.5)
        light_map, base = self._light_map(view, poses)
        seen, contact = lookup(light_map, (t + np.float32(_MAP_HALF)) * _MAP_SCALE, (s - np.float32(base)) * _MAP_SCALE)
        gain = contact * np.float32(1.25 / 255)
        gain[kind == KERB_FACE_ID] *= 0.72
        sun = light.sun * max(-light.towards_sun[1], 0) / 255
        lit = np.empty((3, len(picked)), np.float32)
        for plane, share, sky in zip(lit, sun.tolist(), (1.1 * light.ambient).tolist(), strict=True):
            np.multiply(seen, np.float32(share), out=plane)
            plane += np.float32(sky)
            plane *= gain
        return tile, u, v, level, lit, np.zeros_like(lit)

    def _quads(
        self, surfaces: Surfaces, number: NDArray[np.int32], picked: NDArray[np.intp], inverse: NDArray[np.float32],
        poses: Float,
    ) -> _Samples:  # fmt: skip
        """Flat surfaces: one light for each."""
        quads, chosen = self._scene.quads, surfaces.quad
        normals = np.einsum("qij,qj->qi", poses[quads.obj[chosen], :3, :3], quads.normals[chosen])
        light = _illuminate(self._scene.light, (normals * surfaces.facing[:, None]).T)
        tables = (light.astype(np.float32), (light * (quads.tint[chosen].T - 1)).astype(np.float32))
        x, y, depth = self._x[picked], self._y[picked], 1 / inverse
        rows = np.take(surfaces.planes, number, axis=0)
        u = (rows[:, 3] * x + rows[:, 4] * y + rows[:, 5]) * depth
        v = (rows[:, 6] * x + rows[:, 7] * y + rows[:, 8]) * depth
        level = np.log2(np.take(surfaces.density, number) * (depth * np.sqrt(depth)))
        lit, painted = (np.take(table, number, axis=1) for table in tables)
        return np.take(quads.tile[chosen], number), u, v, level, lit, painted

    def _blobs(
        self, view: View, surfaces: Surfaces, number: NDArray[np.int32], picked: NDArray[np.intp],
        inverse: NDArray[np.float32],
    ) -> _Samples:  # fmt: skip
        """Ellipsoids: shaded by their normals, textured by position from the side they mostly face."""
        blobs, chosen = self._scene.blobs, surfaces.blob
        x, y, depth = self._x[picked], self._y[picked], 1 / inverse
        columns = (surfaces.ray, surfaces.origin, blobs.radii[chosen], blobs.split[chosen], surfaces.to_unit)
        row = np.take(np.concatenate(columns, 1, dtype=np.float32), number, axis=0).T
        q = [row[9 + a] + depth * (row[3 * a] * x + row[3 * a + 1] * y + row[3 * a + 2]) for a in range(3)]
        scale = np.take(blobs.texture_scale[chosen].astype(np.float32), number)
        px, py, pz = (q[a] * row[12 + a] * scale for a in range(3))
        ax, ay, az = (np.abs(c) for c in q)
        sideways, upright = ax >= np.maximum(ay, az), ay > np.maximum(ax, az)
        u, v = np.where(sideways, pz + 0.37, px), np.where(upright, pz + 0.61, py)
        density = self._atlas.sizes[blobs.tile[chosen], 0] * blobs.texture_scale[chosen] / (2 * view.intrinsics[0, 0])
        level = np.log2(np.take(density.astype(np.float32), number) * depth)
        second = row[15] * q[0] + row[16] * q[1] + row[17] * q[2] > row[18]
        tints = np.stack([blobs.tint[chosen], blobs.tint_below[chosen]]).astype(np.float32).transpose(2, 0, 1) - 1
        paint = np.take(tints.reshape(3, -1), number + second * len(chosen), axis=1)
        normal = np.stack([row[19 + a] * q[0] + row[22 + a] * q[1] + row[25 + a] * q[2] for a in range(3)])
        normal /= np.sqrt((normal * normal).sum(0)) + np.float32(1e-9)
        lit = _illuminate(self._scene.light, normal, wrap=0.35)
        paint *= lit
        return np.take(blobs.tile[chosen], number), u, v, level, lit, paint

    # ------------------------------------------------------------------------------------------ ground light

    def _light_map(self, view: View, poses: Float) -> tuple[NDArray[np.uint8], float]:
        """Sun share and contact shade of the ground near the camera, and the distance at which the map begins."""
        first = int(np.floor((view.camera_to_world[2, 3] - 14) / _CHUNK))
        wanted = range(first, first + 3)
        self._chunks = {k: self._chunks[k] if k in self._chunks else self._still_chunk(k) for k in wanted}
        light_map = np.concatenate([self._chunks[k] for k in wanted])
        base = first * _CHUNK
        casters = self._scene.moving_casters
        along = poses[[caster.obj for caster in casters], 2, 3] if casters else np.zeros(0)
        for i in np.flatnonzero((along > base - 5) & (along < base + 3 * _CHUNK)):
            pose = poses[casters[i].obj] @ casters[i].pose
            _cast(light_map, base, casters[i], pose, self._scene.light, self._scene.street)
        return light_map, base

    def _still_chunk(self, number: int) -> NDArray[np.uint8]:
        """The light map of one piece of street under everything that stands still."""
        scene = self._scene
        base, margin = number * _CHUNK, 24.0
        rows = round((_CHUNK + 2 * margin) * _MAP_SCALE)
        columns = round(2 * _MAP_HALF * _MAP_SCALE)
        light_map = np.full((rows, columns, 2), (255, 204), np.uint8)
        start = base - margin
        for caster in scene.still_casters:
            if start - 12 < caster.pose[2, 3] < start + rows / _MAP_SCALE + 12:
                _cast(light_map, start, caster, caster.pose, scene.light, scene.street)
        keep = round(margin * _MAP_SCALE)
        inner = light_map[keep:-keep].copy()
        side = round(_CHUNK * _MAP_SCALE)
        mottle = np.asarray(cv2.resize(scene.mottle, (side, side), interpolation=cv2.INTER_LINEAR))[:, :columns]
        inner[..., 1] = np.clip(inner[..., 1] * (1 + 0.05 * mottle), 0, 255)
        return inner


def _illuminate(light: Light, normals: NDArray[np.floating], wrap: float = 0.0) -> NDArray[np.floating]:
    """Light on surfaces: sky from above, a little back from the ground, and the sun.

    Args:
        light: the day.
        normals: unit, (3, N), world axes.
        wrap: how far sunlight reaches around a soft shape, 0 to 1.

    Returns:
        (3, N) RGB factors of the same type.
    """
    x, y, z = light.towards_sun.tolist()
    sun = np.maximum((normals[0] * x + normals[1] * y + normals[2] * z + wrap) / (1 + wrap), 0)
    sky = 0.92 - 0.18 * normals[1]  # y points down: 1.1 facing up, 0.74 facing down
    channels = zip(light.ambient.tolist(), light.sun.tolist(), strict=True)
    return np.stack([sky * ambient + sun * bright for ambient, bright in channels])


def _cast(light_map: NDArray[np.uint8], base: float, caster: Caster, pose: Float, light: Light, street: Street) -> None:
    """Draw the shadow of an upright box into the light map: the sun's (channel 0) and contact (channel 1)."""
    sx, sz, high = caster.half_x, caster.half_z, caster.height
    foot = np.array([(-sx, 0, -sz, 1), (sx, 0, -sz, 1), (sx, 0, sz, 1), (-sx, 0, sz, 1)]) @ pose.T
    slant = -high / light.towards_sun[1]  # y is down, the sun is at negative y
    tip = foot[:, [0, 2]] - slant * light.towards_sun[[0, 2]]
    ground = np.concatenate([foot[:, [0, 2]], tip])
    # Move into street coordinates with the bend at the foot, so that shapes stay convex.
    bend = float(street.centre(float(pose[2, 3]))), float(street.heading(float(pose[2, 3])))
    ground[:, 0] -= bend[0] + np.tan(bend[1]) * (ground[:, 1] - pose[2, 3])
    texels = (ground - (-_MAP_HALF, base)) * _MAP_SCALE - 0.5
    soft = 2 if high < 3 else 4
    _darken(light_map, texels, 0, soft, 0.9)
    if high > 3 and sx < 3:
        return  # crowns touch nothing
    if sx < 1.5:
        _darken(light_map, (texels[:4] - texels[:4].mean(0)) * 1.06 + texels[:4].mean(0), 1, 2, 0.55)
    else:
        _darken(light_map, texels[:4], 1, 6, 0.4)


def _darken(light_map: NDArray[np.uint8], points: Float, channel: int, soft: int, strength: float) -> None:
    """Multiply one channel inside the hull of some points by 1 - strength, with soft borders."""
    pad = 2 * soft + 1
    low = np.maximum(np.floor(points.min(0)).astype(int) - pad, 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + pad + 1, light_map.shape[1::-1])
    if (low >= high).any():
        return
    shape = (int(high[1] - low[1]), int(high[0] - low[0]))
    mask = np.zeros(shape, np.float32)
    hull = cv2.convexHull(((points - low) * 16).round().astype(np.int32).reshape(-1, 1, 2))
    cv2.fillConvexPoly(mask, hull, strength, cv2.LINE_8, 4)
    mask = np.asarray(cv2.blur(cv2.blur(mask, (soft + 1, soft + 1)), (soft + 1, soft + 1)))
    part = light_map[low[1] : high[1], low[0] : high[0], channel]
    part[:] = (part * (1 - mask)).astype(np.uint8)
