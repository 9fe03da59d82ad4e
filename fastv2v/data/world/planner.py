"""Plan one clip: put houses, trees, furniture, traffic and people along the street."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator

from fastv2v.data.world.atlas import Atlas
from fastv2v.data.world.config import (
    BUILDING,
    CAR,
    CYCLIST,
    FENCE,
    OTHER,
    PERSON,
    POLE,
    SIGN,
    TREE,
    WorldConfig,
)
from fastv2v.data.world.geometry import Builder, Float, Point, place
from fastv2v.data.world.scene import (
    CAMERA_LANE,
    KERB_HEIGHT,
    CameraPath,
    Caster,
    Mover,
    Scene,
    Street,
    motion_of,
    pick,
    plan_camera,
    plan_light,
    plan_street,
)
from fastv2v.data.world.textures import (
    BAY,
    GROUND_STOREY,
    NUM_FACADES,
    NUM_LEAVES,
    NUM_ROADS,
    NUM_SHOPS,
    NUM_SIGNS,
    ROAD_PERIOD,
    STOREY,
    fractal_noise,
)

BUILDING_LINE = 8.7
FAR = 115.0
"""Metres of street that are built ahead of the camera's last position."""


class _Planner:
    """Fills the builder while walking down the street; every kind of thing has its own random stream."""

    def __init__(self, config: WorldConfig, clip: int, street: Street, atlas: Atlas, length: float) -> None:
        self.config, self.street, self.length = config, street, length
        self._root = [config.seed, clip]
        self.build = Builder(dict(atlas.index), atlas.sizes, frozenset(atlas.alpha))
        self.movers = [Mover(0.0, 0.0, 0.0)]
        self.still: list[Caster] = []
        self.moving: list[Caster] = []
        self.instances = 0
        self.start, self.end = -14.0, length + FAR

    def rng(self, stream: int) -> Generator:
        """Randomness of one kind of thing."""
        return np.random.default_rng([*self._root, stream])

    def next_instance(self) -> int:
        """A fresh instance id; 16 bits hold more than any clip needs, and wrap to 1 beyond."""
        self.instances = self.instances % 65535 + 1
        return self.instances

    def move(self, *args: Any, **kwargs: Any) -> int:
        """Add a mover (arguments as for ``Mover``) and return its object number."""
        self.movers.append(Mover(*args, **kwargs))
        return len(self.movers) - 1

    def cast(self, pose: Float, half_x: float, half_z: float, height: float, obj: int = 0) -> None:
        """Remember something that throws a shadow."""
        (self.moving if obj else self.still).append(Caster(obj, pose, half_x, half_z, height))

    # ------------------------------------------------------------------------------------------------ buildings

    def buildings(self) -> None:
        """Rows of houses on both sides, with gaps, and one across the far end."""
        rng = self.rng(1)
        tall = pick(rng, 1.6, 3.2)
        styles = rng.permutation(NUM_FACADES)[:6]
        for side in (-1, 1):
            s = self.start + pick(rng, -8, 0)
            while s < self.end:
                if rng.random() < 0.2:
                    width = pick(rng, 5, 11)
                    self._garden(rng, side, s, width)
                else:
                    bays = int(rng.integers(3, 6))
                    width = bays * BAY
                    self._building(rng, side, s, bays, int(styles[rng.integers(len(styles))]), tall)
                s += width
        for k in range(-5, 6):  # the street ends at houses and trees
            pose = self.street.pose(self.end + 4, 14.0 * k)
            floors = int(rng.integers(2, 5))
            top = GROUND_STOREY + STOREY * floors
            uv = (0.0, 0.0, 14 / 12, top / (2 * STOREY))
            name = f"facade{rng.integers(NUM_FACADES)}"
            self.build.wall(pose, (-7, 0), (7, 0), top, 0, name, BUILDING, uv=uv)
            if rng.random() < 0.6:
                self.build.wall(pose, (-9, -4), (9, -4), pick(rng, 4, 8), 0, "treeline", TREE)
        s = self.start
        while s < self.end + 20:  # trees behind the houses close the gaps
            for side in (-1, 1):
                a, b = (s, s + 24) if side < 0 else (s + 24, s)
                x = side * pick(rng, 23, 26)
                pose = self.street.pose(s + 12, x)
                shade = pick(rng, 0.75, 1.0)
                self.build.wall(pose, (0, a - s - 12), (0, b - s - 12), pick(rng, 7, 12), 0, "treeline", TREE,
                                tint=(shade, shade, shade), two_sided=True)  # fmt: skip
            s += 24

    def _building(self, rng: Generator, side: int, s: float, bays: int, style: int, tall: float) -> None:
        """One house: shop or hall below, storeys above, cornice, roof, bare side walls."""
        width, floors = bays * BAY, int(np.clip(round(rng.normal(tall, 0.9)), 1, 5))
        front = BUILDING_LINE + pick(rng, 0, 0.9)
        pose = self.street.pose(s + width / 2, side * front, side * np.pi / 2)  # the front looks to -z of this pose
        top = GROUND_STOREY + STOREY * floors
        half, depth = width / 2, pick(rng, 9, 12)
        tone = pick(rng, 0.86, 1.08)
        tint = (tone * pick(rng, 0.95, 1.05), tone, tone * pick(rng, 0.94, 1.04))
        shift, storey = float(rng.integers(4)) / 4, float(rng.integers(2)) / 2
        shop = int(rng.integers(NUM_SHOPS))
        add = self.build
        add.wall(pose, (-half, 0), (half, 0), GROUND_STOREY, 0, f"shop{shop}", BUILDING,
                 uv=(shift, 0, shift + width / 12, 1), tint=tint)  # fmt: skip
        add.wall(pose, (-half, 0), (half, 0), top, GROUND_STOREY, f"facade{style}", BUILDING,
                 uv=(shift, storey, shift + width / 12, storey + floors / 2), tint=tint)  # fmt: skip
        bare = "brick" if style in (0, 4) else "plaster"
        pale = (0.92 * tint[0], 0.92 * tint[1], 0.92 * tint[2])
        for a, b in (((half, 0.0), (half, depth)), ((-half, depth), (-half, 0.0))):
            add.wall(pose, a, b, top, 0, bare, BUILDING, uv=(0, 0, depth / 3, top / 3), tint=pale)
        trim = (0.95, 0.93, 0.9) if style % 4 != 2 else (0.62, 0.6, 0.58)
        add.box(pose, (-half, half), (top - 0.45, top + 0.12), (-0.32, 0.0), "stone", BUILDING, metres=2.0,
                underside=True, tint=trim)  # fmt: skip
        add.box(pose, (-half, half), (GROUND_STOREY - 0.12, GROUND_STOREY + 0.14), (-0.18, 0.0), "stone", BUILDING,
                metres=2.0, underside=True, tint=trim)  # fmt: skip
        if rng.random() < 0.6:
            rise = pick(rng, 1.8, 3.2)
            slope = [(-half, -top - rise, 2.6), (half, -top - rise, 2.6), (half, -top, 0.05), (-half, -top, 0.05)]
            slate = pick(rng, 0.6, 1.1)
            add.quad(pose, slope, "roof", BUILDING, uv=(0, 0, width / 2.4, 1.6), tint=(slate, slate, slate))
            ridge, eaves = -top - rise, -top
            gable = [(half, ridge, 2.6), (half, ridge, depth), (half, eaves, depth), (half, eaves, 0.05)]
            other = [(-half, y, z) for _, y, z in (gable[1], gable[0], gable[3], gable[2])]
            for corners in (gable, other):
                add.quad(pose, corners, bare, BUILDING, uv=(0, 0, 2, 1), tint=pale)
            if rng.random() < 0.7:
                x = pick(rng, -half + 1, half - 1)
                add.box(pose, (x - 0.4, x + 0.4), (top + 0.6, top + rise + 0.9), (1.4, 2.2), "brick", BUILDING,
                        metres=3.0)  # fmt: skip
            top += rise * 0.6
        if shop < 5 and rng.random() < 0.7:
            x = pick(rng, -half + 1.6, half - 1.6)
            reach, w = pick(rng, 0.9, 1.4), 1.5
            shade = ((0.75, 0.25, 0.22), (0.25, 0.42, 0.3), (0.25, 0.33, 0.55), (0.8, 0.6, 0.25))[rng.integers(4)]
            cloth = [(x - w, -3.05, -0.02), (x + w, -3.05, -0.02), (x + w, -2.5, -reach), (x - w, -2.5, -reach)]
            add.quad(pose, cloth, "awning", BUILDING, uv=(0, 0, 3, 1), tint=shade, two_sided=True)
            add.wall(pose, (x - w, -reach), (x + w, -reach), 2.5, 2.28, "awning", BUILDING, uv=(0, 0, 3, 0.3),
                     tint=shade, two_sided=True)  # fmt: skip
        if rng.random() < 0.35:  # a hanging sign
            x, h = pick(rng, -half + 1, half - 1), pick(rng, 3.0, 3.5)
            add.wall(pose, (x, -0.05), (x, -0.95), h + 0.8, h, "sign4", SIGN, uv=(0.02, 0.2, 0.98, 0.8), two_sided=True)
        middle = pose @ place(0, depth / 2)
        self.cast(middle, half, depth / 2, top)

    def _garden(self, rng: Generator, side: int, s: float, width: float) -> None:
        """A gap in the row: a fence at the pavement, a hedge or a tree behind."""
        pose = self.street.pose(s + width / 2, side * (BUILDING_LINE + 0.25), side * np.pi / 2)
        wood = rng.random() < 0.45
        name, high = ("planks_fence", 1.5) if wood else ("railings", 1.15)
        tone = pick(rng, 0.7, 1.1)
        half = width / 2
        self.build.wall(pose, (-half, 0), (half, 0), high, 0, name, FENCE, uv=(0, 0, width / 2, 0.999),
                        tint=(tone, tone, tone), two_sided=True)  # fmt: skip
        if rng.random() < 0.7:
            self._hedge(rng, pose @ place(0, 1.2), half)
        for _ in range(int(rng.integers(1, 3))):
            x = pick(rng, -half + 1, half - 1)
            self._tree(rng, pose @ place(x, pick(rng, 3.5, 6.5)), pick(rng, 0.9, 1.3))

    def _hedge(self, rng: Generator, pose: Float, half: float) -> None:
        """A clipped hedge."""
        tone = pick(rng, 0.7, 0.95)
        self.build.box(pose, (-half, half), (0, pick(rng, 0.9, 1.5)), (-0.4, 0.4), f"leaves{rng.integers(NUM_LEAVES)}",
                       TREE, metres=2.2, tint=(tone, tone, tone))  # fmt: skip

    # ------------------------------------------------------------------------------------- street furniture

    def furniture(self) -> None:
        """Trees, lamps, signs, bins, benches, post boxes, planters, bollards, guard rails."""
        rng = self.rng(2)
        tree_step = 8.5 / max(self.config.trees, 0.05)
        for side in (-1, 1):
            s = self.start + pick(rng, 0, 8)
            lamp = s + 4.0
            while s < self.end:
                if self.config.trees and rng.random() < 0.75:
                    self._tree(rng, self.street.pose(s, side * 6.25), pick(rng, 0.75, 1.1))
                s += tree_step * pick(rng, 0.8, 1.3)
            while lamp < self.end:
                self._lamp(self.street.pose(lamp, side * 5.85, -side * np.pi / 2))
                lamp += 24.0
            s = self.start + pick(rng, 6, 12)
            while s < self.end:
                kind = rng.choice(7, p=(0.28, 0.13, 0.12, 0.10, 0.12, 0.10, 0.15))
                pose = self.street.pose(s, side * (5.8 if kind == 0 else 8.2), 0.0 if side > 0 else np.pi)
                self._piece(rng, int(kind), pose, side)
                s += pick(rng, 5, 11)

    def _tree(self, rng: Generator, pose: Float, size: float) -> None:
        """A trunk and a crown of a few leafy ellipsoids."""
        pose = pose @ place(0, 0, pick(rng, 0, 6.28))
        trunk, r = 2.5 * size, 0.13 * size
        self.build.box(pose, (-r, r), (0, trunk + 0.6), (-r, r), "bark", TREE, metres=0.8)
        name, tone = f"leaves{rng.integers(NUM_LEAVES)}", pick(rng, 0.95, 1.2)
        tint = (tone * pick(rng, 0.95, 1.1), tone, tone * pick(rng, 0.9, 1.0))
        crown = pose[:3, 3] + (0, -(trunk + 1.3 * size), 0)
        self.build.blob(crown, (1.35 * size, 1.5 * size, 1.35 * size), name, TREE, metres=2.2, tint=tint, ragged=True)
        turn = pick(rng, 0, 6.28)
        for k in range(4):
            angle = turn + k * 1.57 + pick(rng, -0.4, 0.4)
            reach, lift = pick(rng, 0.6, 1.0) * size, pick(rng, -0.8, 1.2) * size
            centre = crown + np.array((reach * np.cos(angle), -lift, reach * np.sin(angle)))
            r = pick(rng, 0.7, 1.05) * size
            self.build.blob(centre, (r, 0.85 * r, r), name, TREE, metres=2.2, tint=tint, ragged=True)
        self.cast(pose, 1.25 * size, 1.25 * size, trunk + 2.4 * size)

    def _lamp(self, pose: Float) -> None:
        """A street lamp whose arm reaches forward (+z of the pose), over the road."""
        dark = (0.5, 0.53, 0.54)
        self.build.box(pose, (-0.07, 0.07), (0, 6.2), (-0.07, 0.07), "metal", POLE, metres=2, tint=dark)
        self.build.box(pose, (-0.13, 0.13), (0, 0.9), (-0.13, 0.13), "metal", POLE, metres=2, tint=dark)
        self.build.box(pose, (-0.05, 0.05), (6.1, 6.2), (0, 1.6), "metal", POLE, metres=2, underside=True, tint=dark)
        self.build.box(pose, (-0.14, 0.14), (6.0, 6.18), (1.4, 2.1), "metal", POLE, metres=2, underside=True,
                       tint=(1.5, 1.5, 1.4))  # fmt: skip
        self.cast(pose, 0.08, 0.08, 6.2)

    def _piece(self, rng: Generator, kind: int, pose: Float, side: int) -> None:
        """One piece of furniture; the pose looks down the street on the right side and back on the left."""
        add = self.build
        if kind == 0:
            high = pick(rng, 2.3, 2.7)
            add.box(pose, (-0.045, 0.045), (0, high + 0.5), (-0.045, 0.045), "metal", POLE, metres=2)
            number = int(rng.integers(NUM_SIGNS))
            r = 0.42 if number < 4 else 0.75
            # On the right they look at the camera; on the left half are meant for it and half are seen from behind.
            facing = pose if side > 0 or rng.random() < 0.5 else pose @ place(0, 0, np.pi)
            z = -0.06
            add.wall(facing, (-r, z), (r, z), high + 2 * r - 0.2, high - 0.2, f"sign{number}", SIGN,
                     uv=(0.01, 0.01, 0.99, 0.99))  # fmt: skip
            add.wall(facing, (r, z + 0.01), (-r, z + 0.01), high + 2 * r - 0.2, high - 0.2, f"sign_back{number}", SIGN,
                     uv=(0.99, 0.01, 0.01, 0.99))  # fmt: skip
            self.cast(pose, 0.05, 0.05, 2.6)
        elif kind == 1:
            add.box(pose, (-0.25, 0.25), (0, 0.95), (-0.25, 0.25), "bin", OTHER)
            self.cast(pose, 0.25, 0.25, 0.95)
        elif kind == 2:
            add.box(pose, (-0.22, 0.22), (0.38, 0.45), (-0.85, 0.85), "planks", OTHER, underside=True)
            add.box(pose, (0.2, 0.26), (0.45, 0.85), (-0.85, 0.85), "planks", OTHER)
            for z in (-0.7, 0.7):
                add.box(pose, (-0.2, 0.24), (0, 0.4), (z - 0.04, z + 0.04), "metal", OTHER)
            self.cast(pose, 0.25, 0.85, 0.7)
        elif kind == 3:
            add.box(pose, (-0.28, 0.28), (0, 1.35), (-0.24, 0.24), "postbox", OTHER, metres=0.56)
            self.cast(pose, 0.28, 0.24, 1.35)
        elif kind == 4:
            add.box(pose, (-0.4, 0.4), (0, 0.5), (-0.7, 0.7), "stone", OTHER, metres=1.5, tint=(0.8, 0.78, 0.74))
            for z in (-0.35, 0.0, 0.35):
                centre = (pose @ (0, -0.62 - pick(rng, 0, 0.15), z, 1))[:3]
                add.blob(centre, (0.38, 0.34, 0.36), f"leaves{rng.integers(NUM_LEAVES)}", TREE, metres=1.2, ragged=True)
            self.cast(pose, 0.4, 0.7, 0.8)
        elif kind == 5:
            for z in (-1.4, 0.0, 1.4):
                at = pose @ place(-2.35, z)
                add.box(at, (-0.07, 0.07), (0, 0.95), (-0.07, 0.07), "metal", POLE, metres=2, tint=(0.42, 0.42, 0.44))
                self.cast(at, 0.09, 0.09, 0.95)
        else:  # a guard rail along the kerb
            length = float(rng.integers(3, 6)) * 2.0
            add.wall(pose, (-2.45, length / 2), (-2.45, -length / 2), 1.05, 0.0, "railings", FENCE,
                     uv=(0, 0, length / 2, 0.999), two_sided=True)  # fmt: skip
            self.cast(pose @ place(-2.45, 0), 0.03, length / 2, 0.5)

    # --------------------------------------------------------------------------------------------- traffic

    def traffic(self) -> None:
        """Parked cars, cars both ways, cyclists."""
        rng = self.rng(3)
        density = self.config.cars
        if not density:
            return
        for side in (-1, 1):
            s = self.start + pick(rng, 0, 6)
            while s < self.end - 8:
                if rng.random() < 0.34 * density:
                    self._car(rng, s, side * 4.35 + pick(rng, -0.1, 0.1), parked=True, turned=side < 0)
                s += pick(rng, 5.4, 6.6)
        drives = self.config.camera == "drive"
        span = self.end + 8.0 * self.config.num_frames / self.config.fps
        s, speed = pick(rng, 14, 34), pick(rng, 6.5, 9)
        while s < span:
            self._car(rng, s, -1.65, parked=False, turned=True, speed=speed)
            s += pick(rng, 16, 44) / density
        if drives:
            s = pick(rng, 13, 30)
            for _ in range(int(np.ceil(2 * density))):
                self._car(rng, s, CAMERA_LANE, parked=False, turned=False, follows=True)
                s += pick(rng, 12, 26)
        for turned in (False, True):
            s = pick(rng, 9, 22)
            while s < span:
                if rng.random() < 0.6 * density:
                    self._cyclist(rng, s, 2.95 * (-1 if turned else 1), turned)
                s += pick(rng, 18, 40)

    def _car(
        self, rng: Generator, s: float, t: float, *, parked: bool, turned: bool, speed: float = 0.0,
        follows: bool = False,
    ) -> None:  # fmt: skip
        """A car of one of three bodies: lower body, tapered cabin, lights."""
        obj, pose = 0, np.eye(4)
        if parked:
            pose = self.street.pose(s, t, np.pi * turned + pick(rng, -0.02, 0.02))
        else:
            obj = self.move(s, t, speed, turned=turned, follows=follows)
        paint: Point = (
            (0.86, 0.87, 0.88), (0.22, 0.24, 0.27), (0.68, 0.16, 0.15), (0.20, 0.32, 0.58), (0.56, 0.58, 0.60),
            (0.24, 0.40, 0.32), (0.88, 0.68, 0.24), (0.40, 0.62, 0.72),
        )[rng.integers(8)]  # fmt: skip
        body = int(rng.integers(3))
        length, waist, top = ((4.0, 0.90, 1.44), (4.5, 0.88, 1.40), (4.6, 1.02, 1.78))[body]
        # Along the car: rear, front, windscreen base, roof front, roof back, rear window base.
        base_f, roof_f, roof_b, base_b = (
            (1.0, 0.25, -1.45, -1.85),
            (1.05, 0.3, -1.0, -1.6),
            (1.25, 0.75, -1.95, -2.2),
        )[body]
        w, inset, rear, front, sill = 0.88, 0.17, -length / 2, length / 2, 0.2
        nose = waist - 0.12
        add = self.build
        opts: dict[str, Any] = {"instance": self.next_instance(), "obj": obj}
        painted = {**opts, "tint": paint}
        side, window = f"car_side{body}", f"car_window{body}"
        cut, span = (base_f - rear) / length, base_f - base_b
        u_cut, lean, end = 0.004 + 0.992 * cut, (roof_b - base_b) / span, (roof_f - base_b) / span
        hood = 0.004 + 0.992 * (waist - nose) / waist
        r = w - inset
        # Right side, then left; textures run from rear to front on both.
        add.wall(pose, (w, rear), (w, base_f), waist, 0.0, side, CAR, uv=(0.004, 0.004, u_cut, 0.996), **painted)
        wing = [(w, 0.0, front), (w, 0.0, base_f), (w, -waist, base_f), (w, -nose, front)]
        add.quad(pose, wing, side, CAR, uv=(0.996, 0.996, u_cut, 0.996, 0.996, hood), **painted)
        glass = [(r, -top, roof_b), (r, -top, roof_f), (w, -waist, base_f), (w, -waist, base_b)]
        add.quad(pose, glass, window, CAR, uv=(lean, 0.02, end, 0.02, 0.0, 0.98), **painted)
        add.wall(pose, (-w, base_f), (-w, rear), waist, 0.0, side, CAR, uv=(u_cut, 0.004, 0.004, 0.996), **painted)
        wing = [(-w, 0.0, base_f), (-w, 0.0, front), (-w, -nose, front), (-w, -waist, base_f)]
        add.quad(pose, wing, side, CAR, uv=(u_cut, 0.996, 0.996, 0.996, u_cut, 0.004), **painted)
        glass = [(-r, -top, roof_f), (-r, -top, roof_b), (-w, -waist, base_b), (-w, -waist, base_f)]
        add.quad(pose, glass, window, CAR, uv=(end, 0.02, lean, 0.02, 1.0, 0.98), **painted)
        add.wall(pose, (w, front), (-w, front), nose, sill, "car_front", CAR, uv=(0.004, 0.01, 0.996, 0.99), **painted)
        add.wall(pose, (-w, rear), (w, rear), waist, sill, "car_back", CAR, uv=(0.004, 0.01, 0.996, 0.99), **painted)
        flat = {**painted, "uv": (0.0, 0.0, 1.0, 1.0)}
        bonnet = [(-w, -nose, front), (w, -nose, front), (w, -waist, base_f), (-w, -waist, base_f)]
        add.quad(pose, bonnet, "paint", CAR, **flat)
        screen = [(r, -top, roof_f), (-r, -top, roof_f), (-w, -waist, base_f), (w, -waist, base_f)]
        add.quad(pose, screen, "windscreen", CAR, uv=(0.004, 0.02, 0.996, 0.98), **painted)
        back = [(-r, -top, roof_b), (r, -top, roof_b), (w, -waist, base_b), (-w, -waist, base_b)]
        add.quad(pose, back, "windscreen", CAR, uv=(0.004, 0.02, 0.996, 0.98), **painted)
        roof = [(-r, -top, roof_f), (r, -top, roof_f), (r, -top, roof_b), (-r, -top, roof_b)]
        add.quad(pose, roof, "paint", CAR, **flat)
        boot = [(-w, -waist, base_b), (w, -waist, base_b), (w, -waist, rear), (-w, -waist, rear)]
        add.quad(pose, boot, "paint", CAR, **flat)
        dark = {**opts, "tint": (0.08, 0.08, 0.09), "uv": (0.0, 0.0, 1.0, 1.0)}
        add.wall(pose, (w * 0.8, front - 0.3), (-w * 0.8, front - 0.3), 0.3, 0.12, "metal", CAR, **dark)
        add.wall(pose, (-w * 0.8, rear + 0.3), (w * 0.8, rear + 0.3), 0.3, 0.12, "metal", CAR, **dark)
        for z in (front - 0.85, rear + 0.8):  # tyres seen under the bumpers
            for x0, x1 in ((-w + 0.02, -w + 0.22), (w - 0.22, w - 0.02)):
                add.wall(pose, (x1, z + 0.16), (x0, z + 0.16), 0.4, 0.02, "metal", CAR, **dark)
                add.wall(pose, (x0, z - 0.16), (x1, z - 0.16), 0.4, 0.02, "metal", CAR, **dark)
        self.cast(pose, w, length / 2, 1.1, obj)

    def _cyclist(self, rng: Generator, s: float, t: float, turned: bool) -> None:
        """A rider on a bicycle; legs turn with the pedals."""
        speed, instance, phase = pick(rng, 3.8, 5.2), self.next_instance(), pick(rng, 0, 6.28)
        body = self.move(s, t, speed, turned=turned)
        hue: Point = ((0.7, 0.15, 0.15), (0.15, 0.3, 0.6), (0.2, 0.45, 0.3), (0.85, 0.85, 0.85))[rng.integers(4)]
        opts: dict[str, Any] = {"instance": instance}
        self.build.wall(np.eye(4), (0.0, -0.9), (0.0, 0.9), 1.1, 0.0, "bicycle", CYCLIST, uv=(0.004, 0.01, 0.996, 0.99),
                        tint=hue, two_sided=True, obj=body, **opts)  # fmt: skip
        red, green, blue = rng.uniform(0.25, 0.85, 3).tolist()
        shirt: Point = (red, green, blue)
        trousers: Point = ((0.2, 0.22, 0.3), (0.3, 0.26, 0.22), (0.15, 0.15, 0.16))[rng.integers(3)]
        where = (s, t, speed)
        rate = 7.5
        torso = self.move(*where, turned=turned, pivot=(0, -0.95, -0.2), lean=-0.45)
        self.build.blob((0, -0.3, 0), (0.21, 0.36, 0.15), "cloth", CYCLIST, metres=0.6, tint=shirt, obj=torso, **opts)
        self.build.blob((0, -0.82, 0.05), (0.12, 0.16, 0.14), "cloth", CYCLIST, tint=(0.9, 0.68, 0.56), obj=torso,
                        tint_below=hue, split=(0, -1, 0, 0.1), **opts)  # fmt: skip
        for side in (-1, 1):
            offset = phase + (np.pi if side > 0 else 0)
            leg = self.move(*where, turned=turned, pivot=(0.1 * side, -0.95, -0.15), swing=0.4, rate=rate,
                                  phase=offset, lean=0.35)  # fmt: skip
            self.build.blob((0, 0.36, 0), (0.09, 0.42, 0.1), "cloth", CYCLIST, tint=trousers, obj=leg,
                            tint_below=(0.12, 0.12, 0.12), split=(0, 1, 0, 0.82), **opts)  # fmt: skip
            arm = self.move(*where, turned=turned, pivot=(0.19 * side, -1.42, 0.0), lean=0.95)
            self.build.blob((0, 0.27, 0), (0.06, 0.3, 0.06), "cloth", CYCLIST, tint=shirt, obj=arm, **opts)
        self.cast(np.eye(4), 0.2, 0.8, 1.3, body)

    def pedestrians(self) -> None:
        """People walking both ways on both pavements."""
        rng = self.rng(4)
        if not self.config.people:
            return
        for side in (-1, 1):
            s = self.start + pick(rng, 4, 10)
            while s < self.end:
                self._person(rng, s, side * pick(rng, 6.7, 7.9), bool(rng.random() < 0.5))
                s += rng.exponential(4.5 / self.config.people) + 1.0

    def _person(self, rng: Generator, s: float, t: float, turned: bool) -> None:
        """Head, torso, arms and legs that swing from shoulder and hip."""
        speed, instance, phase = pick(rng, 1.0, 1.6), self.next_instance(), pick(rng, 0, 6.28)
        size, rate = pick(rng, 0.92, 1.06), 6.2 * speed / 1.3
        shirts: tuple[Point, ...] = (
            (0.75, 0.2, 0.2), (0.25, 0.35, 0.6), (0.9, 0.88, 0.84), (0.25, 0.27, 0.3), (0.85, 0.65, 0.25),
            (0.35, 0.5, 0.38), (0.55, 0.35, 0.5), (0.62, 0.56, 0.48),
        )  # fmt: skip
        shirt = shirts[rng.integers(8)]
        trousers: Point = ((0.18, 0.22, 0.34), (0.14, 0.14, 0.16), (0.45, 0.38, 0.3), (0.35, 0.36, 0.4))[
            rng.integers(4)
        ]
        skin: Point = ((0.94, 0.74, 0.62), (0.72, 0.52, 0.4), (0.48, 0.34, 0.27))[rng.integers(3)]
        hair: Point = ((0.2, 0.14, 0.1), (0.42, 0.28, 0.16), (0.1, 0.1, 0.1), (0.75, 0.62, 0.4))[rng.integers(4)]
        where, opts = (s, t, speed), dict[str, Any](instance=instance)
        lift = KERB_HEIGHT

        def part(
            x: float, up: float, centre: Point, radii: Point, tint: Point, second: Point | None = None,
            split: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 9.0), swing: float = 0.0, shift: float = 0.0,
        ) -> None:  # fmt: skip
            obj = self.move(*where, turned=turned, pivot=(x * size, -(up * size + lift), 0.0), swing=swing,
                                  rate=rate, phase=phase + shift)  # fmt: skip
            scaled = tuple(size * c for c in centre), tuple(size * r for r in radii)
            self.build.blob(scaled[0], scaled[1], "cloth", PERSON, metres=0.5, tint=tint, tint_below=second,  # type: ignore[arg-type]
                            split=split, obj=obj, **opts)  # fmt: skip

        part(0, 1.18, (0, 0, 0), (0.22, 0.36, 0.14), shirt)
        part(0, 0.9, (0, 0, 0), (0.18, 0.15, 0.13), trousers)
        part(0, 1.62, (0, 0, 0), (0.105, 0.14, 0.12), skin, hair, (0.0, -0.75, -0.66, 0.12))
        for side, shift in ((-1, 0.0), (1, np.pi)):
            part(0.1 * side, 0.9, (0, 0.43, 0), (0.095, 0.46, 0.11), trousers, (0.1, 0.09, 0.09), (0, 1, 0, 0.84),
                 0.42, shift)  # fmt: skip
            part(
                0.245 * side, 1.42, (0, 0.29, 0), (0.065, 0.32, 0.07), shirt, skin, (0, 1, 0, 0.7), 0.36, shift + np.pi
            )
        body = self.move(*where, turned=turned)
        self.cast(np.eye(4), 0.2, 0.16, 1.6, body)


def plan_scene(config: WorldConfig, clip: int, atlas: Atlas) -> tuple[Scene, CameraPath]:
    """Everything about clip number ``clip``, decided by (config, clip) alone.

    Args:
        config: the world.
        clip: clip number, 0 or more.
        atlas: textures of the world's seed.

    Returns:
        The scene and the camera's way through it.
    """
    street = plan_street(np.random.default_rng([config.seed, clip, 10]))
    camera = plan_camera(config, street, np.random.default_rng([config.seed, clip, 11]))
    light = plan_light(np.random.default_rng([config.seed, clip, 12]))
    rng = np.random.default_rng([config.seed, clip, 13])
    planner = _Planner(config, clip, street, atlas, float(camera.travelled.max()))
    planner.buildings()
    planner.furniture()
    planner.traffic()
    planner.pedestrians()
    start = planner.start - 20.0
    periods = int(np.ceil((planner.end + 30 - start) / ROAD_PERIOD)) + 1
    variants = rng.choice(NUM_ROADS, periods, p=(0.32, 0.3, 0.16, 0.22)).astype(np.int32)
    scene = Scene(
        street=street,
        light=light,
        quads=planner.build.quads(),
        blobs=planner.build.blobs(),
        motion=motion_of(planner.movers),
        still_casters=tuple(planner.still),
        moving_casters=tuple(planner.moving),
        road_variants=variants,
        pavement=f"pavement{rng.integers(2)}",
        ground_start=start,
        ground_end=planner.end + 30,
        mottle=fractal_noise(rng, (256, 256), 64, 4),
    )
    return scene, camera
