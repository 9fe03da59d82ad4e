"""Driving: another person's landmarks and joints come back to the trained person's proportions and place."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fastv2v.data.driving.body import TREE, BodyFit, BodyProfile, Proportions, fit_bodies, main_person
from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.face import GROUPS, FaceFit, FaceProfile, fit_faces
from fastv2v.data.driving.space import Space
from fastv2v.data.pose import Person
from fastv2v.errors import ConfigError, DataError

SEQUENCE, CAUSAL = DrivingConfig(fit="sequence"), DrivingConfig(fit="causal", settle=0)
FRAME = (240, 240)


def turned(points, scale=1.0, angle=0.0, shift=(0.0, 0.0)):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + np.array(shift)


def a_face():
    """68 landmarks of a plain face, 100 pixels wide, around 0."""
    angle = np.linspace(np.pi, 0, 17)
    jaw = np.stack([50 * np.cos(angle), 70 * np.sin(angle) - 10], 1)

    def arc(x, y, a, b, first, last, count):
        t = np.radians(np.linspace(first, last, count))
        return np.stack([x + a * np.cos(t), y + b * np.sin(t)], 1)

    nose = np.concatenate([np.stack([np.zeros(4), np.linspace(-12, 12, 4)], 1), arc(0, 15, 10, 4, 160, 20, 5)])
    eyes = [arc(x, -12, 10, 5, 180, 480, 6) for x in (-22, 22)]
    mouth = np.concatenate([arc(0, 38, 20, 8, 180, 510, 12), arc(0, 38, 15, 3, 180, 495, 8)])
    return np.concatenate(
        [jaw, arc(-22, -25, 14, 5, 190, 340, 5), arc(22, -25, 14, 5, 200, 350, 5), nose, *eyes, mouth]
    )


def expressions(frames=40):
    """Mouth, brows and lids that move, in the face's own pixels."""
    faces = np.repeat(a_face()[None], frames, 0)
    t = np.arange(frames)
    mouth = faces[:, 48:68]
    faces[:, 48:68] = 38 * np.array([0, 1]) + (mouth - [0, 38]) * (1 + 0.5 * np.sin(t / 3)[:, None, None] * [0.2, 1])
    faces[:, 17:27, 1] += 3 * np.cos(t / 5)[:, None]
    for eye in (slice(36, 42), slice(42, 48)):
        middle = faces[:, eye].mean(1, keepdims=True)
        bent = (faces[:, eye] - middle) * np.array([1, 0.6])
        # The corners stay; lids close.
        faces[:, eye][:, [1, 2, 4, 5]] = np.where((t % 11 == 0)[:, None, None], middle + bent, faces[:, eye])[
            :, [1, 2, 4, 5]
        ]
    return faces


def placed(faces):
    """The head sways, nods nearer and tilts."""
    t = np.arange(len(faces))
    return np.stack([
        turned(face, 1 + 0.05 * np.sin(i / 7), 0.1 * np.sin(i / 6), (120 + 6 * np.sin(i / 9), 118 + 4 * np.cos(i / 8)))
        for i, face in zip(t, faces, strict=True)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def faces():
    return placed(expressions())


@pytest.fixture(scope="module")
def face(faces):
    return FaceProfile.of(faces)


def driven(profile, landmarks, config=SEQUENCE):
    return [fitted for fitted, _ in fit_faces(profile, landmarks, config)]


class TestSpace:
    def test_distance_of_a_hand_worked_space(self):
        rng = np.random.default_rng(0)
        values = rng.normal(0, [3, 1, 0], (4000, 3)) + np.array([5, 0, 2])
        space = Space.of(values, 0.1)
        assert space.mean == pytest.approx([5, 0, 2], abs=0.2) and len(space.axes) == 2
        # 99 % of a normal distribution of three effective axes; the third adds nothing here.
        assert space.usual == pytest.approx(np.sqrt(9.21), rel=0.05)
        assert space.distance(np.array([5 + 9.0, 0, 2])) == pytest.approx(3 / space.usual, rel=0.05)

    def test_distance_grows_with_the_offset_in_every_direction(self):
        rng = np.random.default_rng(1)
        space = Space.of(rng.normal(0, 1, (100, 30)) * np.linspace(2, 0, 30), 0.05)
        for direction in np.eye(30):
            far = [space.distance(space.mean + r * direction) for r in (0, 1, 2, 4, 8)]
            assert far[0] == 0 and np.all(np.diff(far) > 0)
            assert far[2] == pytest.approx(2 * far[1])

    def test_pulled_ends_at_the_limit_and_leaves_what_is_near(self):
        space = Space.of(np.random.default_rng(2).normal(0, 1, (50, 4)), 0.05)
        far = np.array([9.0, -4, 3, 1])
        assert space.distance(space.pulled(far, 1.2)) == pytest.approx(1.2)
        near = space.mean + 0.1
        assert (space.pulled(near, 1.2) == near).all()

    def test_what_was_not_seen_counts_as_usual(self):
        values = np.random.default_rng(3).normal(0, 1, (50, 4))
        values[::3, 1] = np.nan
        space = Space.of(values, 0.05)
        value = space.mean + np.array([0, np.nan, 0, 0])
        assert space.distance(value) == 0
        assert np.isnan(space.pulled(np.array([90, np.nan, 0, 0]), 1.0)[1])

    def test_survives_its_file(self):
        space = Space.of(np.random.default_rng(4).normal(0, 1, (50, 4)), 0.05)
        again = Space.from_json(json.loads(json.dumps(space.to_json())), 4, "file")
        value = np.array([1.0, 2, 3, 4])
        assert again.distance(value) == pytest.approx(space.distance(value), rel=1e-4)
        with pytest.raises(DataError, match="'mean' has shape"):
            Space.from_json(space.to_json(), 5, "file")
        with pytest.raises(DataError, match="'axes' is missing"):
            Space.from_json({k: v for k, v in space.to_json().items() if k != "axes"}, 4, "file")


class TestFace:
    def test_the_trained_face_elsewhere_and_larger_comes_back(self, face, faces):
        moved = turned(faces, 2.7, 0.0, (300, -80))
        for fitted, wanted in zip(driven(face, moved), faces, strict=True):
            assert np.abs(fitted.landmarks - wanted).max() < 0.05

    def test_a_camera_held_askew_comes_back(self, face, faces):
        for fitted, wanted in zip(driven(face, turned(faces, 0.6, 0.2, (40, 9))), faces, strict=True):
            assert np.abs(fitted.landmarks - wanted).max() < 0.05

    def test_other_proportions_come_back(self, face, faces):
        """Mouth, brows and eyes of other sizes: within a hundredth of the face's width."""
        own = expressions()
        for group, (wide, high) in zip(
            GROUPS, [(1, 1), (1.2, 1), (1.2, 1), (1, 1), (1.15, 1.3), (1.15, 1.3), (0.7, 1.4)], strict=True
        ):
            middle = own[:, group].mean(1, keepdims=True)
            own[:, group] = middle + (own[:, group] - middle) * np.array([wide, high])
        fitted = np.stack([one.landmarks for one in driven(face, placed(own))])
        assert np.abs(fitted - faces).mean() < 0.3 and np.abs(fitted - faces).max() < 1.5

    def test_a_causal_fit_uses_no_later_frame(self, face, faces):
        rng = np.random.default_rng(0)
        other = faces.copy()
        other[25:] += rng.normal(0, 20, other[25:].shape)
        one, two = driven(face, faces, CAUSAL), driven(face, other, CAUSAL)
        for t in range(25):
            assert (one[t].landmarks == two[t].landmarks).all()
        assert np.abs(one[25].landmarks - two[25].landmarks).max() > 1

    def test_a_causal_fit_asks_for_no_frame_before_it_is_due(self, face, faces):
        asked = []

        def source():
            for t, points in enumerate(faces):
                asked.append(t)
                yield points

        fits = fit_faces(face, source(), CAUSAL)
        for t in range(5):
            next(fits)
            assert asked[-1] == t

    def test_a_causal_fit_ends_where_that_of_the_sequence_is(self, face, faces):
        moved = turned(faces, 1.7, 0, (30, 60))
        last, whole = driven(face, moved, CAUSAL)[-1], driven(face, moved)[-1]
        assert np.abs(last.landmarks - whole.landmarks).max() < 0.01

    def test_a_causal_fit_begins_at_the_trained_place(self, face, faces):
        first = driven(face, turned(faces, 3, 0, (500, 500)), CAUSAL)[0].landmarks
        assert np.abs(first - face.at_rest().landmarks).max() < 0.01

    def test_distances_grow_with_injected_offsets(self, face, faces):
        fit = FaceFit(face, CAUSAL)
        fit.learn(list(faces))
        far = []
        for opened in (0, 5, 10, 20, 40):
            points = faces[3].copy()
            points[54:60, 1] += opened
            far.append(fit.push(points).shape)
        assert far[0] < 1.2 and (np.diff(far) > 0).all() and far[-1] > 3

    def test_trained_frames_are_usual(self, face, faces):
        reach = [one.reach for one in driven(face, faces)]
        assert np.mean(np.array(reach) <= 1.05) >= 0.9

    def test_pulled_back_within_what_was_trained(self, face, faces):
        wild = faces.copy()
        wild[:, 54:60, 1] += 30 * np.abs(np.sin(np.arange(len(faces))))[:, None]
        pulled = driven(face, wild, replace(SEQUENCE, within=1.0))
        assert max(one.shape for one in pulled) > 1.5
        again = FaceFit(face, SEQUENCE)
        again.learn(list(faces))
        assert max(again.push(one.landmarks).shape for one in pulled) < 1.05

    def test_a_head_that_leaves_drags_the_frame_along(self, face, faces):
        """It walks across the picture: what is fitted stays where heads were trained."""
        walked = faces + np.arange(len(faces))[:, None, None] * np.array([15, 0])
        xs = [one.landmarks[:, 0].mean() for one in driven(face, walked, CAUSAL)]
        trained = faces[..., 0].mean(1)
        assert min(xs) > trained.min() - 10 and max(xs) < trained.max() + 10

    def test_expression_is_scaled(self, face, faces):
        calm = driven(face, faces, replace(SEQUENCE, expression=0.0))
        openings = [np.ptp(one.landmarks[48:60, 1]) for one in calm]
        assert np.ptp(openings) < 3 < np.ptp(np.ptp(faces[:, 48:60, 1], axis=1))

    def test_lost_faces_are_held(self, face, faces):
        sparse = [None, faces[0], None, faces[2], None]
        held = list(fit_faces(face, sparse, SEQUENCE))
        assert [flag for _, flag in held] == [False, False, True, False, True]
        assert (held[2][0].landmarks == held[1][0].landmarks).all()
        rest, flag = next(iter(fit_faces(face, sparse, CAUSAL)))
        assert flag and (rest.landmarks == face.at_rest().landmarks).all()
        with pytest.raises(DataError, match="no face was found in any frame"):
            list(fit_faces(face, [None, None], SEQUENCE))

    def test_bad_faces_are_refused(self, face, faces):
        with pytest.raises(DataError, match="at least 2 faces"):
            FaceProfile.of(faces[:1])
        with pytest.raises(DataError, match="lie in one place"):
            FaceFit(face, CAUSAL).push(np.zeros((68, 2)))

    def test_survives_its_file(self, face, faces):
        again = FaceProfile.from_json(json.loads(json.dumps(face.to_json())), "file")
        for one, other in zip(driven(face, faces), driven(again, faces), strict=True):
            assert np.abs(one.landmarks - other.landmarks).max() < 0.01


def a_person(t, lengths=None, root=(120, 60)):
    """A figure that swings arms and legs; feet on the ground or, at times, in the air."""
    lengths = {"neck": 20, "trunk": 50, "shoulder": 18, "upper arm": 25, "lower arm": 22, "hip": 8, "thigh": 40,
               "shin": 38, "eye": 6, "ear": 6, "foot": 10, "toe": 3, "heel": 4} | (lengths or {})  # fmt: skip
    angle = {
        0: -90, 8: 90, 2: 180, 5: 0, 3: 100 + 40 * np.sin(t / 3), 4: 80 + 60 * np.sin(t / 3 + 1),
        6: 80 - 40 * np.sin(t / 3), 7: 100 - 60 * np.cos(t / 4), 9: 180, 12: 0, 10: 95 + 20 * np.sin(t / 5),
        11: 90, 13: 85 - 20 * np.sin(t / 5), 14: 90, 15: -140, 17: 180, 16: -40, 18: 0, 22: 20, 23: 20, 24: 160,
        19: 20, 20: 20, 21: 160,
    }  # fmt: skip
    body = np.zeros((25, 3))
    body[1] = *root, 0.9
    for inner, outer, group in TREE:
        turn = np.radians(angle[outer])
        body[outer, :2] = body[inner, :2] + lengths[group] * np.array([np.cos(turn), np.sin(turn)])
        body[outer, 2] = 0.9
    hand = np.concatenate([np.random.default_rng(5).normal(0, 4, (21, 2)), np.ones((21, 1))], 1)
    hands = [hand + np.append(body[wrist, :2], 0) for wrist in (7, 4)]
    face = np.concatenate([np.random.default_rng(6).normal(0, 5, (70, 2)), np.ones((70, 1))], 1) + np.append(
        body[0, :2], 0
    )
    return Person(body, face, *hands)


def walk(frames=40, lengths=None):
    """On a ground at one height, so that the neck's height follows from the legs; with hops."""
    people = []
    for t in range(frames):
        person = a_person(t, lengths)
        lowest = person.body[[11, 14], 1].max()
        shift = np.array([5 * np.sin(t / 6), 200 - lowest - (6 if t % 13 == 0 else 0), 0])
        people.append(Person(*(points + shift for points in person)))
    return people


def changed(person, scale, shift):
    return Person(*(np.concatenate([points[:, :2] * scale + shift, points[:, 2:]], 1) for points in person))


def bodies(profile, people, config=SEQUENCE):
    return [fitted for fitted, _ in fit_bodies(profile, FRAME, people, config)]


def distance(one, other):
    return max(float(np.abs(a[:, :2] - b[:, :2]).max()) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def people():
    return walk()


@pytest.fixture(scope="module")
def body(people):
    return BodyProfile.of(people)


class TestBody:
    def test_proportions_are_those_of_the_figure(self, people):
        found = Proportions.of(people)
        assert found.lengths["thigh"] == pytest.approx(40) and found.lengths["trunk"] == pytest.approx(50)
        assert found.lines["ankles"] == pytest.approx(200)

    def test_the_trained_body_elsewhere_and_larger_comes_back(self, body, people):
        for fitted, wanted in zip(bodies(body, [changed(p, 2.5, (90, -40)) for p in people]), people, strict=True):
            assert distance(fitted.person, wanted) < 1e-6

    def test_other_proportions_come_back(self, body, people):
        """A tall driver with long legs and short arms stands on the trained ground with the trained limbs."""
        tall = walk(lengths={"thigh": 55, "shin": 50, "upper arm": 20, "lower arm": 17})
        for fitted, wanted in zip(bodies(body, [changed(p, 1.4, (20, 10)) for p in tall]), people, strict=True):
            assert distance(fitted.person, wanted) < 1e-6

    def test_hops_stay_hops(self, body, people):
        low = [one.person.body[[11, 14], 1].max() for one in bodies(body, people)]
        assert low[13] == pytest.approx(194) and low[14] == pytest.approx(200)

    def test_a_causal_fit_uses_no_later_frame(self, body, people):
        other = people[:20] + [changed(p, 1.7, (3, 9)) for p in people[20:]]
        one, two = bodies(body, people, CAUSAL), bodies(body, other, CAUSAL)
        assert all(distance(one[t].person, two[t].person) == 0 for t in range(20))
        assert distance(one[20].person, two[20].person) > 0

    def test_a_causal_fit_ends_where_that_of_the_sequence_is(self, body, people):
        moved = [changed(p, 0.8, (5, 5)) for p in people]
        assert distance(bodies(body, moved, CAUSAL)[-1].person, bodies(body, moved)[-1].person) < 1e-9

    def test_distances_grow_with_injected_offsets(self, body, people):
        fit = BodyFit(body, FRAME, SEQUENCE)
        fit.learn(people)
        far = []
        for raised in (0, 20, 40, 80):
            person = Person(*(points.copy() for points in people[4]))
            person.body[4, 1] -= raised
            far.append(fit.push(person).shape)
        assert far[0] < 1.2 and (np.diff(far) > 0).all()
        away = [fit.push(changed(people[4], 1, (dx, 0))).place for dx in (10, 30, 60)]
        assert (np.diff(away) > 0).all() and away[-1] > 2

    def test_pulled_back_within_what_was_trained(self, body, people):
        fit = BodyFit(body, FRAME, replace(SEQUENCE, within=1.0))
        fit.learn(people)
        wild = changed(people[4], 1, (80, 0))
        assert fit.push(wild).place > 2
        again = BodyFit(body, FRAME, SEQUENCE)
        again.learn(people)
        assert abs(fit.push(wild).person.body[1, 0] - again.push(people[4]).person.body[1, 0]) < 15

    def test_points_that_training_never_showed_are_left_out(self, people):
        half = [Person(np.where(np.arange(25)[:, None] < 8, p.body, 0), *p[1:]) for p in people]
        fitted = bodies(BodyProfile.of(half), people)[0].person
        assert (fitted.body[8:, 2] == 0).all() and (fitted.body[:8, 2] > 0).all()

    def test_points_outside_of_the_frame_are_not_found(self, body, people):
        fit = BodyFit(body, (150, 240), SEQUENCE)
        fit.learn(people)
        found = fit.push(people[0]).person.body
        assert (found[[11, 14], 2] == 0).all() and found[1, 2] > 0

    def test_who_is_not_seen_is_held(self, body, people):
        held = list(fit_bodies(body, FRAME, [None, people[0], None], SEQUENCE))
        assert [flag for _, flag in held] == [False, False, True]
        rest, flag = next(iter(fit_bodies(body, FRAME, [None], CAUSAL)))
        assert flag and np.abs(rest.person.body[1, :2] - body.proportions.neck).max() < 1e-9
        assert (rest.person.body[:, 2] > 0).all() and rest.reach == 0
        with pytest.raises(DataError, match="nobody was found in any frame"):
            list(fit_bodies(body, FRAME, [None], SEQUENCE))

    def test_the_tallest_person_drives(self, people):
        assert main_person((changed(people[0], 0.5, 0), people[1])) is people[1]
        headless = people[0]._replace(body=np.zeros((25, 3)))
        assert main_person((headless,)) is None
        with pytest.raises(DataError, match="neck of the person"):
            BodyProfile.of([headless, headless])

    def test_survives_its_file(self, body, people):
        again = BodyProfile.from_json(json.loads(json.dumps(body.to_json())), "file")
        for one, other in zip(bodies(body, people), bodies(again, people), strict=True):
            assert distance(one.person, other.person) < 0.01
        with pytest.raises(DataError, match="no known names"):
            BodyProfile.from_json(body.to_json() | {"lengths": {"tail": 3}}, "file")


def test_settings_are_checked():
    for wrong in ({"within": 0}, {"expression": 9}, {"fit": "guess"}, {"memory": 0}, {"warn_above": -1}):
        with pytest.raises(ConfigError):
            DrivingConfig(**wrong)
