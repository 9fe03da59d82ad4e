"""Which surface does each sample of the picture see? Ground by intersection, quads and ellipsoids by a depth buffer.

Everything here is numpy. A sample at (x, y) looks along the ray K^-1 (x, y, 1); because the ray's z is 1, depth along
the optical axis is the ray parameter, and its inverse is an affine function of (x, y) on every plane. Edges of a quad
are planes through the camera centre, so a quad that crosses the camera plane needs no clipping to be filled rightly
(Olano and Greer, "Triangle Scan Conversion using 2D Homogeneous Coordinates", 1997); only its bounding box is clipped.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastv2v.data.world.atlas import Atlas
from fastv2v.data.world.geometry import Blobs, Float, Quads
from fastv2v.data.world.scene import KERB_HEIGHT, Scene, Street
from fastv2v.data.world.textures import ROAD_HALF_WIDTH

NEAR = 0.1
SKY_ID, ROAD_ID, KERB_FACE_ID, KERB_TOP_ID, PAVEMENT_ID, LAWN_ID = range(6)
NUM_GROUND = 6
KERB_WIDTH, PAVEMENT_END, GROUND_LIMIT = 0.2, 9.6, 600.0
BEHIND, AHEAD = 40.0, 280.0
"""Metres along the street around the camera in which things are drawn; haze and bends hide what lies beyond."""


class View(NamedTuple):
    """One camera with its grid of samples: two per pixel each way, every second one at a pixel centre."""

    camera_to_world: Float  # 4x4
    intrinsics: Float  # 3x3
    xs: NDArray[np.float32]  # (w,) pixel coordinates of the sample columns
    ys: NDArray[np.float32]  # (h,)

    @property
    def inverse_intrinsics(self) -> Float:
        """K^-1."""
        return np.asarray(np.linalg.inv(self.intrinsics), np.float64)


def sample_grid(size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixel coordinates of the 2 W + 1 sample columns and 2 H + 1 rows.

    Pixel (i, j) has its centre at sample (2 i + 1, 2 j + 1).
    """
    rows, columns = (((np.arange(2 * length + 1) - 1) / 2).astype(np.float32) for length in size)
    return columns, rows


class Surfaces(NamedTuple):
    """The shapes that may be seen from one view, and how to find texture coordinates on them."""

    quad: NDArray[np.int32]  # (q,) numbers of the quads that are drawn
    planes: NDArray[np.float32]  # (q, 9): affine coefficients of 1/z, u/z, v/z in (x, y, 1)
    facing: NDArray[np.float32]  # (q,) +1 seen from the front, -1 from the back
    density: NDArray[np.float32]  # (q,) texels per sample at 1/z = 1: level = log2(density / inverse_depth ** 1.5)
    blob: NDArray[np.int32]  # (e,) numbers of the ellipsoids that are drawn
    ray: NDArray[np.float32]  # (e, 9): unit-sphere direction = ray @ (x, y, 1)
    origin: NDArray[np.float32]  # (e, 3): camera centre in unit-sphere coordinates
    to_unit: NDArray[np.float32]  # (e, 9): world vector to unit-sphere coordinates


class GBuffer(NamedTuple):
    """What each sample sees. ``ids``: SKY_ID, ground ids, then quads from NUM_GROUND, then ellipsoids."""

    ids: NDArray[np.int32]  # (h, w)
    inverse_depth: NDArray[np.float32]  # (h, w), 0 for sky
    street_t: NDArray[np.float32]  # (h, w) metres right of the centre line, on the ground only
    street_s: NDArray[np.float32]  # (h, w) metres along the street, on the ground only


def rasterize(view: View, scene: Scene, poses: Float, atlas: Atlas) -> tuple[GBuffer, Surfaces]:
    """Find the nearest surface for every sample.

    Args:
        view: the camera and its samples.
        scene: what there is.
        poses: object-to-world transforms of the moment, (O, 4, 4).
        atlas: textures, for the holes of cut-outs.

    Returns:
        The samples and the shapes they refer to.
    """
    buffer = _ground(view, scene.street)
    world_to_camera = np.linalg.inv(view.camera_to_world)
    to_camera = world_to_camera @ poses
    quad, planes, facing, density, edges, boxes, nearest = _prepare_quads(view, scene.quads, to_camera, poses)
    _fill_quads(view, buffer, scene.quads, quad, planes, edges, boxes, nearest, atlas)
    blob, ray, origin, to_unit, boxes, nearest = _prepare_blobs(view, scene.blobs, to_camera, poses)
    _fill_blobs(view, buffer, scene.blobs, blob, ray, origin, boxes, nearest, NUM_GROUND + len(quad), atlas)
    f32 = np.float32
    surfaces = Surfaces(
        quad, planes.reshape(-1, 9).astype(f32), facing.astype(f32), density.astype(f32),
        blob, ray.reshape(-1, 9).astype(f32), origin.astype(f32), to_unit.reshape(-1, 9).astype(f32),
    )  # fmt: skip
    return buffer, surfaces


def ray_component(view: View, axis: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """World-space ray component along ``axis`` as (row term (h, 1), column term (1, w)); their sum is the ray."""
    coefficients = view.camera_to_world[axis, :3] @ view.inverse_intrinsics
    rows = (coefficients[1] * view.ys + coefficients[2]).astype(np.float32)
    return rows[:, None], (coefficients[0] * view.xs).astype(np.float32)[None]


def _ground(view: View, street: Street) -> GBuffer:
    """Sky above, and below it road, kerb, pavement and lawn: two level planes joined by the kerb's face."""
    shape = len(view.ys), len(view.xs)
    ids = np.zeros(shape, np.int32)
    inverse, t, s = (np.zeros(shape, np.float32) for _ in range(3))
    down = np.add(*ray_component(view, 1))
    camera = view.camera_to_world[:3, 3]
    road_drop, path_drop = float(-camera[1]), float(-KERB_HEIGHT - camera[1])
    sees = down > road_drop / GROUND_LIMIT
    rows = np.flatnonzero(sees.any(1))
    if not len(rows):
        return GBuffer(ids, inverse, t, s)
    part = slice(rows[0], rows[-1] + 1)
    sees, down = sees[part], np.maximum(down[part], road_drop / GROUND_LIMIT)
    across, ahead = (a[part] + b for a, b in (ray_component(view, 0), ray_component(view, 2)))
    wave_a, wave_k, wave_p = (np.asarray(v, np.float32) for v in street)

    def lateral(z: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        along = np.float32(camera[2]) + z * ahead
        centre = wave_a[0] * np.sin(wave_k[0] * along + wave_p[0]) + wave_a[1] * np.sin(wave_k[1] * along + wave_p[1])
        return np.float32(camera[0]) + z * across - centre, along

    low, high = road_drop / down, path_drop / down
    t_low, s_low = lateral(low)
    t_high, s_high = lateral(high)
    half = np.float32(ROAD_HALF_WIDTH)
    on_path, on_road = np.abs(t_high) >= half, np.abs(t_low) <= half
    # Between the two planes the ray meets the kerb's face; it is so short a way that it may be taken as straight.
    gap = np.abs(t_low) - np.abs(t_high)
    share = np.clip((half - np.abs(t_high)) / np.where(np.abs(gap) > 1e-6, gap, 1), 0, 1)
    share = np.where(on_path, 0, np.where(on_road, 1, share)).astype(np.float32)
    depth = high + share * (low - high)
    t[part], s[part] = t_high + share * (t_low - t_high), s_high + share * (s_low - s_high)
    distance = np.abs(t[part])
    kind = np.full(distance.shape, PAVEMENT_ID, np.int32)
    kind[distance > PAVEMENT_END] = LAWN_ID
    kind[distance < half + KERB_WIDTH] = KERB_TOP_ID
    kind[~on_path & ~on_road] = KERB_FACE_ID
    kind[~on_path & on_road] = ROAD_ID
    ids[part] = np.where(sees, kind, SKY_ID)
    inverse[part] = np.where(sees, 1 / depth, 0)
    return GBuffer(ids, inverse, t, s)


def _prepare_quads(
    view: View, quads: Quads, to_camera: Float, poses: Float
) -> tuple[NDArray[np.int32], Float, Float, Float, Float, NDArray[np.int64], Float]:
    """Cull, and set up the affine functions of the quads that remain, their boxes and largest inverse depths."""
    close = np.flatnonzero(_close(view, quads.corners[:, 0, 2], quads.obj, poses))
    pose = to_camera[quads.obj[close]]
    corners = np.einsum("qij,qkj->qki", pose[:, :3, :3], quads.corners[close]) + pose[:, None, :3, 3]
    focal = view.intrinsics[0, 0]
    limits = _frustum(view)
    outside = (corners @ limits.T < 0).all(1).any(1) | (corners[..., 2] < NEAR).all(1)
    normals = np.einsum("qij,qj->qi", pose[:, :3, :3], quads.normals[close])
    distance = (normals * corners[:, 0]).sum(1)  # n . o, negative where the front is seen
    keep = ~outside & (np.abs(distance) > 1e-6) & (quads.two_sided[close] | (distance < 0))
    chosen = close[keep].astype(np.int32)
    pose, corners, normals, distance = pose[keep], corners[keep], normals[keep], distance[keep]
    inverse_k = view.inverse_intrinsics
    # On the plane n . (r z) = n . o: 1/z = (n / n.o) . r, and any affine g . p + c becomes z (g + c n / n.o) . r.
    plane = normals / distance[:, None]
    gradient = np.einsum("qij,qkj->qki", pose[:, :3, :3], quads.uv[chosen][..., :3])
    offset = quads.uv[chosen][..., 3] - (gradient * pose[:, None, :3, 3]).sum(-1)
    rows = np.concatenate([plane[:, None], gradient + offset[..., None] * plane[:, None]], 1)
    planes = rows @ inverse_k
    facing = np.where(distance < 0, 1.0, -1.0)
    crossed = np.cross(corners, np.roll(corners, -1, axis=1)) * facing[:, None, None]
    edges = crossed @ inverse_k
    # One sample step moves z^1.5 sqrt(n . o) / (2 f) metres on the plane, as the geometric mean of both directions.
    density = quads.density[chosen] * np.sqrt(1 / np.maximum(np.abs(distance), 1e-3)) / (2 * focal)
    nearest = 1.0001 / np.maximum(corners[..., 2].min(1), NEAR / 2)
    return chosen, planes, facing, density, edges, _boxes_of_corners(view, corners), nearest


def _close(view: View, z: Float, obj: NDArray[np.int32], poses: Float) -> NDArray[np.bool_]:
    """Which shapes, at ``z`` in their object, are near enough along the street to be looked at more closely."""
    along = np.where(obj > 0, poses[obj, 2, 3], z) - view.camera_to_world[2, 3]
    return (along > -BEHIND) & (along < AHEAD)


def _frustum(view: View) -> Float:
    """Inward normals of the four side planes of what the samples see, (4, 3)."""
    k_inverse = view.inverse_intrinsics
    x0, x1, y0, y1 = view.xs[0], view.xs[-1], view.ys[0], view.ys[-1]
    rays = np.array([(x0, y0, 1), (x1, y0, 1), (x1, y1, 1), (x0, y1, 1)]) @ k_inverse.T
    normals = np.cross(rays, np.roll(rays, -1, axis=0))
    return np.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True))


def _boxes_of_corners(view: View, corners: Float) -> NDArray[np.int64]:
    """Sample ranges (x0, x1, y0, y1), ends exclusive, that hold the visible part of each quad."""
    k = view.intrinsics
    crossing = (corners[..., 2] < NEAR).any(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        x = corners[..., 0] / corners[..., 2] * k[0, 0] + k[0, 2]
        y = corners[..., 1] / corners[..., 2] * k[1, 1] + k[1, 2]
    low_high = np.stack([x.min(1), x.max(1), y.min(1), y.max(1)], 1)
    for i in np.flatnonzero(crossing):
        points = _clip_near(corners[i])
        px, py = (points[:, a] / points[:, 2] * k[a, a] + k[a, 2] for a in (0, 1))
        low_high[i] = px.min(), px.max(), py.min(), py.max()
    return _sample_ranges(view, low_high)


def _clip_near(polygon: Float) -> Float:
    """The part of a polygon in front of the near plane (Sutherland and Hodgman)."""
    out = []
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            out.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            out.append(a + (b - a) * (NEAR - a[2]) / (b[2] - a[2]))
    return np.array(out)


def _sample_ranges(view: View, low_high: Float) -> NDArray[np.int64]:
    """Pixel bounds to sample index ranges, clipped to the grid."""
    width, height = len(view.xs), len(view.ys)
    scaled = np.nan_to_num(low_high, nan=0.0, posinf=1e9, neginf=-1e9) * 2 + 1
    out = np.empty(low_high.shape, np.int64)
    for column, limit in ((0, width), (2, height)):
        out[:, column] = np.clip(np.ceil(scaled[:, column]), 0, limit)
        out[:, column + 1] = np.clip(np.floor(scaled[:, column + 1]) + 1, 0, limit)
    return out


def _fill_quads(
    view: View, buffer: GBuffer, quads: Quads, chosen: NDArray[np.int32], planes: Float, edges: Float,
    boxes: NDArray[np.int64], nearest: Float, atlas: Atlas,
) -> None:  # fmt: skip
    """Draw the quads into the depth buffer, from near to far."""
    f32 = np.float32
    edge_x, edge_y, edge_c = (edges[..., i].astype(f32) for i in range(3))
    plane_x, plane_y, plane_c = (planes[..., i].astype(f32) for i in range(3))
    cut = quads.cutout[chosen]
    far_limit = f32(1 / NEAR)
    for i in np.argsort(-nearest).tolist():
        x0, x1, y0, y1 = boxes[i].tolist()
        if x0 >= x1 or y0 >= y1:
            continue
        stored = buffer.inverse_depth[y0:y1, x0:x1]
        if nearest[i] <= stored.min():  # all hidden: front to back, that is most of a street
            continue
        xs, ys = view.xs[x0:x1], view.ys[y0:y1]
        rows = edge_y[i][:, None] * ys + edge_c[i][:, None]
        columns = -edge_x[i][:, None] * xs
        inside = rows[0][:, None] >= columns[0]
        for k in (1, 2, 3):
            inside &= rows[k][:, None] >= columns[k]
        terms_y, terms_x = plane_y[i][:, None] * ys + plane_c[i][:, None], plane_x[i][:, None] * xs
        inverse = terms_y[0][:, None] + terms_x[0]
        inside &= inverse > stored
        inside &= inverse < far_limit
        if cut[i]:
            if not inside.any():
                continue
            u, v = ((terms_y[k][:, None] + terms_x[k]) / np.where(inside, inverse, 1) for k in (1, 2))
            inside &= _solid(atlas, int(quads.tile[chosen[i]]), u, v, min(y1 - y0, 2 * (x1 - x0)))
        np.copyto(stored, inverse, where=inside)
        np.copyto(buffer.ids[y0:y1, x0:x1], NUM_GROUND + i, where=inside)


def _solid(atlas: Atlas, tile: int, u: NDArray[np.float32], v: NDArray[np.float32], extent: int) -> NDArray[np.bool_]:
    """Where a cut-out is not a hole; the level is chosen by how many samples the whole shape covers."""
    levels = atlas.alpha[tile]
    wanted = int(np.floor(np.log2(max(1.0, levels[0].shape[0] / max(1, extent)))))
    mask = levels[min(wanted, len(levels) - 1)]
    height, width = mask.shape
    column = np.floor(u * width).astype(np.int32) % width
    row = np.clip(np.floor(v * height), 0, height - 1).astype(np.int32)
    return mask[row, column]


def _prepare_blobs(
    view: View, blobs: Blobs, to_camera: Float, poses: Float
) -> tuple[NDArray[np.int32], Float, Float, Float, NDArray[np.int64], Float]:
    """Cull, and set up the ray-to-unit-sphere maps of the ellipsoids that remain."""
    if not len(blobs.obj):
        empty = np.zeros((0, 3, 3))
        return np.zeros(0, np.int32), empty, np.zeros((0, 3)), empty, np.zeros((0, 4), np.int64), np.zeros(0)
    close = np.flatnonzero(_close(view, blobs.centre[:, 2], blobs.obj, poses))
    pose = to_camera[blobs.obj[close]]
    centre = np.einsum("eij,ej->ei", pose[:, :3, :3], blobs.centre[close]) + pose[:, :3, 3]
    reach = blobs.radii[close].max(1)
    inside = (centre @ _frustum(view).T > -reach[:, None]).all(1) & (centre[:, 2] + reach > NEAR)
    chosen = close[inside].astype(np.int32)
    rotation, centre, radii = pose[inside, :3, :3], centre[inside], blobs.radii[chosen]
    shrink = rotation.transpose(0, 2, 1) / radii[..., None]  # camera vector to unit-sphere coordinates
    origin = -np.einsum("eij,ej->ei", shrink, centre)
    # Bounds of the outline from the dual conic K (A A^T - c c^T) K^T, A = rotation * radii.
    axes = rotation * radii[:, None]
    dual = axes @ axes.transpose(0, 2, 1) - centre[:, :, None] * centre[:, None]
    conic = view.intrinsics @ dual @ view.intrinsics.T
    low_high = np.empty((len(chosen), 4))
    whole = conic[:, 2, 2] >= -1e-6  # touches the camera plane: no finite outline
    bottom = np.where(whole, -1.0, conic[:, 2, 2])
    for a in (0, 1):
        root = np.sqrt(np.maximum(conic[:, a, 2] ** 2 - conic[:, a, a] * bottom, 0))
        low_high[:, 2 * a] = (conic[:, a, 2] + root) / bottom
        low_high[:, 2 * a + 1] = (conic[:, a, 2] - root) / bottom
    low_high[whole] = -1e9, 1e9, -1e9, 1e9
    to_unit = poses[blobs.obj[chosen], :3, :3].transpose(0, 2, 1) / radii[..., None]
    nearest = 1.0001 / np.maximum(centre[:, 2] - np.sqrt((axes[:, 2] ** 2).sum(1)), NEAR / 2)
    return chosen, shrink @ view.inverse_intrinsics, origin, to_unit, _sample_ranges(view, low_high), nearest


def _fill_blobs(
    view: View, buffer: GBuffer, blobs: Blobs, chosen: NDArray[np.int32], ray: Float, origin: Float,
    boxes: NDArray[np.int64], nearest: Float, first_id: int, atlas: Atlas,
) -> None:  # fmt: skip
    """Draw the ellipsoids into the depth buffer."""
    f32 = np.float32
    ray, origin = ray.astype(f32), origin.astype(f32)
    ragged = blobs.ragged[chosen]
    far_limit = f32(1 / NEAR)
    for i in np.argsort(-nearest).tolist():
        x0, x1, y0, y1 = boxes[i].tolist()
        if x0 >= x1 or y0 >= y1:
            continue
        stored = buffer.inverse_depth[y0:y1, x0:x1]
        if nearest[i] <= stored.min():
            continue
        xs, ys = view.xs[x0:x1], view.ys[y0:y1]
        columns, rows = ray[i, :, 0, None] * xs, ray[i, :, 1, None] * ys + ray[i, :, 2, None]
        dx, dy, dz = (rows[k][:, None] + columns[k] for k in range(3))
        o = origin[i]
        c = f32(o @ o - 1)
        if c <= 1e-4:
            continue  # the camera is inside: see through it
        # |o + d z| = 1 with w = 1/z reads c w^2 + 2 b w + a = 0; the nearest hit is the larger w.
        a = dx * dx
        a += dy * dy
        a += dz * dz
        b = dx * o[0]
        b += dy * o[1]
        b += dz * o[2]
        root = b * b
        root -= c * a
        inside = root > 0
        np.sqrt(np.maximum(root, 0, out=root), out=root)
        inverse = (root - b) / c
        inside &= inverse > stored
        inside &= inverse < far_limit
        if not inside.any():
            continue
        if ragged[i] and x1 - x0 > 8:
            inside &= _leafy(atlas, int(blobs.tile[chosen[i]]), root, a, inverse, inside, (dx, dy, dz), o, i)
        np.copyto(stored, inverse, where=inside)
        np.copyto(buffer.ids[y0:y1, x0:x1], first_id + i, where=inside)


def _leafy(
    atlas: Atlas, tile: int, root: NDArray[np.float32], a: NDArray[np.float32], inverse: NDArray[np.float32],
    inside: NDArray[np.bool_], rays: tuple[NDArray[np.float32], ...], origin: NDArray[np.float32], seed: int,
) -> NDArray[np.bool_]:  # fmt: skip
    """Eat holes into the rim of a crown, where it is seen edge on."""
    mask = atlas.alpha[tile][2]
    size = mask.shape[0]
    depth = 1 / np.where(inside, inverse, 1)
    x, y, z = (o + d * depth for o, d in zip(origin, rays, strict=True))
    row = (((y + 0.5 * z) * 20).astype(np.int32)) % size
    column = (((x + 0.7 * z) * 20).astype(np.int32)) % size
    facing = root / np.sqrt(a)  # cosine between ray and normal in unit-sphere coordinates
    return (facing > 0.5) | mask[row, column] & (facing > 0.25)
