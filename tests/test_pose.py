"""Pose conditions: OpenPose files, drawn limbs, DensePose maps, and what training leaves out of them."""

import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import shared

from fastv2v.config import from_dict, to_dict
from fastv2v.data.drawing import fit_curve, stroke
from fastv2v.data.pose import (
    BODY_SEGMENTS,
    MissingPose,
    Person,
    PoseConfig,
    PoseDrop,
    centre_crop_columns,
    check_people_in_frame,
    draw_drop,
    draw_openpose,
    head_mask,
    pose_picture,
    pose_to_float,
    prepare_densepose,
    read_openpose,
)
from fastv2v.errors import ConfigError, DataError, ShapeError

PLAIN = PoseConfig()
MAX = PoseConfig(compositing="max")
SIZE = (96, 128)
KEYS = {"pose_keypoints_2d": 25, "face_keypoints_2d": 70, "hand_left_keypoints_2d": 21, "hand_right_keypoints_2d": 21}

LIMBS = [
    (tuple(map(int, pair.split("-"))), tuple(map(int, colour.split(","))))
    for pair, colour in re.findall(
        r"(\d+-\d+) (\d+,\d+,\d+)",
        """
        17-15 153,0,153  15-0 153,0,102  0-16 102,0,153  16-18 51,0,153
        0-1 153,0,51  1-8 153,0,0
        1-2 153,51,0  2-3 153,102,0  3-4 153,153,0
        1-5 102,153,0  5-6 51,153,0  6-7 0,153,0
        8-9 0,153,51  9-10 0,153,102  10-11 0,153,153  11-24 0,153,153  11-22 0,153,153  22-23 0,153,153
        8-12 0,102,153  12-13 0,51,153  13-14 0,0,153  14-21 0,0,153  14-19 0,0,153  19-20 0,0,153
        """,
    )
]
FINGERS = [(204, 0, 0), (163, 204, 0), (0, 204, 82), (0, 82, 204), (163, 0, 204)]
FACE_LINES = [range(17, 22), range(22, 27), range(27, 31), range(31, 36), [36, 37, 38, 39], [39, 40, 41, 36]]
FACE_LINES += [[42, 43, 44, 45], [45, 46, 47, 42], range(48, 55), [54, 55, 56, 57, 58, 59, 48]]


def person(body=(), face=(), left=(), right=()):
    """Somebody of whom only the given points, {index: (x, y) or (x, y, confidence)}, were found."""
    made = []
    for count, given_points in zip(KEYS.values(), (body, face, left, right), strict=True):
        points = np.zeros((count, 3))
        for index, point in dict(given_points).items():
            points[index] = (*point, 1)[:3]
        made.append(points)
    return Person(*made)


def row(indices, y=40.0, start=20.0, gap=12.0):
    """Points side by side."""
    return {index: (start + gap * i, y) for i, index in enumerate(indices)}


def colours(picture):
    """Colours drawn, black apart."""
    return {tuple(map(int, c)) for c in np.unique(picture.reshape(-1, 3), axis=0)} - {(0, 0, 0)}


def draw(who, config=MAX, drop=None):
    return draw_openpose((who,), SIZE, config, drop=drop)


def is_black(picture):
    return not picture.any()


def openpose(*people, **changes):
    """Content of a file, each person (everything valid when ``None``) with keys changed or, for ``...``, left out."""
    listed = []
    for number in people or (0,):
        keys = {key: [10.5 + number, 20, 0.9] * count for key, count in KEYS.items()} | changes
        listed.append({key: value for key, value in keys.items() if value is not ...})
    return json.dumps({"version": 1.2, "people": listed}).encode()


class TestConfig:
    def test_channels(self):
        assert PLAIN.channels == 6
        assert PoseConfig(densepose=False).channels == PoseConfig(openpose=False).channels == 3

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"densepose": False, "openpose": False}, "both are switched off"),
            ({"random_drop": 1.5}, "from 0 to 1, got 1.5"),
            ({"random_drop": -0.1}, "from 0 to 1"),
            ({"random_drop": float("nan")}, "from 0 to 1"),
            ({"drop_per": "batch"}, "unknown drop_per 'batch'; there are clip and frame"),
            ({"people": "first"}, "all and tallest"),
            ({"compositing": "over"}, "reference and max"),
            ({"stroke_width": "thin"}, "fixed and scaled"),
        ],
    )
    def test_nonsense_is_refused(self, wrong, message):
        with pytest.raises(ConfigError, match=message):
            PoseConfig(**wrong)

    def test_survives_a_checkpoint(self):
        config = PoseConfig(people="tallest", remove_face_labels=True)
        assert from_dict(PoseConfig, to_dict(config)) == config


class TestReading:
    def test_points_are_rows_of_x_y_and_confidence(self):
        (found,) = read_openpose(openpose(pose_keypoints_2d=list(range(75))), "a.json")
        assert found.body.dtype == np.float64
        assert found.body[1].tolist() == [3, 4, 5]
        assert [points.shape for points in found] == [(25, 3), (70, 3), (21, 3), (21, 3)]
        assert found.right_hand[20].tolist() == [10.5, 20, 0.9]

    def test_people_keep_their_order(self):
        assert [p.body[0, 0] for p in read_openpose(openpose(0, 1, 2), "a.json")] == [10.5, 11.5, 12.5]

    @pytest.mark.parametrize("value", [[], ...])
    def test_hands_and_face_may_be_missing(self, value):
        changes = dict.fromkeys(list(KEYS)[1:], value)
        (found,) = read_openpose(openpose(**changes), "a.json")
        assert found.body[0, 2] == 0.9
        assert is_black(found.face) and is_black(found.left_hand) and is_black(found.right_hand)

    def test_nobody_is_told_apart_from_damage(self):
        with pytest.raises(MissingPose, match=r"a\.json: OpenPose found nobody in this frame; .*hold"):
            read_openpose(b'{"version": 1.2, "people": []}', "a.json")
        assert issubclass(MissingPose, DataError)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "not a readable JSON file"),
            (b'{"people": [', "not a readable JSON file"),
            (b"\xff\xfe\x00", "not a readable JSON file"),
            (b"[" * 200_000, "not a readable JSON file"),
            (b'{"people": ' + b"9" * 5000 + b"}", "not a readable JSON file"),
            (b"[]", "a list under 'people'"),
            (b"{}", "a list under 'people'"),
            (b'{"people": {}}', "a list under 'people'"),
            (b'{"people": [7]}', "person 0: expected an object of key points, got 7"),
            (openpose(pose_keypoints_2d=...), "person 0: there is no 'pose_keypoints_2d'"),
            (openpose(pose_keypoints_2d=[1] * 54), "18 points of the older COCO body model; run OpenPose again"),
            (openpose(pose_keypoints_2d=[]), r"person 0: 'pose_keypoints_2d' must be a list of 75 numbers .*, got 0"),
            (openpose(pose_keypoints_2d=None), "must be a list of 75 numbers .*, got None"),
            (openpose(face_keypoints_2d=[1] * 204), r"'face_keypoints_2d' must be a list of 210 .*, got 204"),
            (openpose(hand_left_keypoints_2d="no"), r"'hand_left_keypoints_2d' must be a list of 63 .*, got 'no'"),
            (openpose(hand_right_keypoints_2d=None), "'hand_right_keypoints_2d' must be a list of 63 .*, got None"),
            (openpose(pose_keypoints_2d=["1"] * 75), "'pose_keypoints_2d': value 0 is '1'"),
            (openpose(pose_keypoints_2d=[1, True] + [1] * 73), "value 1 is True"),
            (openpose(pose_keypoints_2d=[float("nan")] * 75), "value 0 is nan"),
            (openpose(pose_keypoints_2d=[1] * 74 + [float("inf")]), "value 74 is inf"),
            (openpose(pose_keypoints_2d=[-(10**400)] * 75), "value 0 is -1000"),
            (openpose(pose_keypoints_2d=[50_001] * 75), "between -50000 and 50000"),
            (openpose(pose_keypoints_2d=[0.4, 0.9, 0.8] * 25), "scaled to 0 to 1 and pixels are needed"),
        ],
    )
    def test_damage_is_one_sentence_naming_the_file(self, data, message):
        with pytest.raises(DataError, match=message) as caught:
            read_openpose(data, "clip/a.json")
        assert not isinstance(caught.value, MissingPose)
        assert str(caught.value).startswith("clip/a.json: ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300

    def test_the_second_person_is_named(self):
        people = json.loads(openpose(0, 1))
        people["people"][1]["face_keypoints_2d"][5] = None
        with pytest.raises(DataError, match="person 1: 'face_keypoints_2d': value 5 is None"):
            read_openpose(json.dumps(people).encode(), "a.json")

    JSON = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["people", *KEYS]), inner),
        max_leaves=8,
    )
    LENGTHS = st.sampled_from([0, 3, 54, 63, 75, 210])
    POINTS = st.builds(lambda value, count: [value] * count, JSON, LENGTHS)
    PEOPLE = st.fixed_dictionaries(
        {"people": st.lists(st.fixed_dictionaries({}, optional=dict.fromkeys(KEYS, JSON | POINTS)), max_size=3)}
    )

    @given(JSON | PEOPLE)
    @settings(max_examples=150, deadline=None)
    def test_any_json_gives_people_or_one_data_error(self, value):
        try:
            people = read_openpose(json.dumps(value).encode(), "a.json")
        except DataError:
            return
        assert people
        assert draw_openpose(people, (8, 8), PLAIN).shape == (8, 8, 3)

    @given(st.binary(max_size=40))
    @settings(max_examples=50, deadline=None)
    def test_any_bytes_give_one_data_error(self, data):
        with pytest.raises(DataError):
            read_openpose(data, "a.json")


class TestNobody:
    def test_a_body_without_a_found_point_is_nobody(self):
        unseen = [30.0, 20.0, 0.01] * 25
        with pytest.raises(MissingPose, match=r"a\.json: OpenPose found no point of any body"):
            read_openpose(openpose(0, 1, pose_keypoints_2d=unseen), "a.json")
        assert len(read_openpose(openpose(pose_keypoints_2d=[*unseen[:-1], 0.02]), "a.json")) == 1

    def test_more_than_half_of_the_points_outside_is_refused(self):
        size = (100, 200)
        inside, outside = {i: (10, 10) for i in range(4)}, {i: (4010, 10) for i in range(4, 8)}
        check_people_in_frame([person(inside | outside)], size, "a.json")
        check_people_in_frame([person(outside), person(inside)], size, "a.json")
        with pytest.raises(
            DataError, match=r"a\.json: 5 of 9 points of bodies lie outside the 200x100 frame; .*OpenPose"
        ):
            check_people_in_frame([person(inside | outside | {8: (10, 100)})], size, "a.json")

    def test_points_that_were_not_found_lie_nowhere(self):
        check_people_in_frame([person({0: (10, 10), 1: (900, 10, 0.0), 2: (900, 10, 0.01), 3: (0, -5)})], (20, 20), "")


class TestLimbs:
    def test_a_limb_by_hand(self):
        # From (40, 30) to (60, 30): a bar of rows 27 to 32, columns 37 to 62, and a disc of radius 6 at either end.
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        bar = (y >= 27) & (y <= 32) & (x >= 37) & (x <= 62)
        ends = [((y - 30) ** 2 + (x - end) ** 2 < 36) & (y <= 35) & (x <= end + 5) for end in (40, 60)]
        expected = np.where((bar | ends[0] | ends[1])[..., None], (153, 0, 0), 0)
        assert np.array_equal(draw(person(body={1: (40, 30), 8: (60, 30)})), expected)

    def test_the_table(self):
        assert list(BODY_SEGMENTS) == LIMBS

    @pytest.mark.parametrize(("pair", "colour"), LIMBS)
    def test_each_limb_has_its_colour(self, pair, colour):
        assert colours(draw(person(body=row(pair, gap=30)))) == {colour}

    def test_reference_compositing_is_that_of_strokes_in_order(self):
        body = {0: (60, 10), 1: (60, 40), 8: (62, 80), 2: (30, 42), 5: (90, 38)}
        expected = np.zeros((*SIZE, 3), np.uint8)
        for (a, b), colour in LIMBS:
            if a in body and b in body:
                stroke(expected, fit_curve(np.array([body[a], body[b]])), colour, width=3, ends=True)
        assert np.array_equal(draw(person(body=body), PLAIN), expected)
        assert not np.array_equal(draw(person(body=body), MAX), expected)

    @pytest.mark.parametrize(("confidence", "drawn"), [(0.01, False), (0.0100001, True), (0, False), (1, True)])
    def test_confidence_must_exceed_a_hundredth(self, confidence, drawn):
        assert draw(person(body={1: (40, 30), 8: (60, 30, confidence)})).any() == drawn

    def test_x_of_zero_counts_as_not_found(self):
        assert is_black(draw(person(body={1: (0, 30), 8: (60, 30)})))
        assert draw(person(body={1: (0.5, 30), 8: (60, 30)})).any()

    def test_y_of_zero_does_not(self):
        assert draw(person(body={1: (40, 0), 8: (60, 30)})).any()

    def test_points_outside_end_at_the_border(self):
        picture = draw(person(body={1: (-30, 300), 8: (60, 30)}))
        assert picture.shape == (*SIZE, 3) and picture.any()

    def test_an_empty_size_is_refused(self):
        with pytest.raises(ShapeError, match="at least 1 x 1"):
            draw_openpose((person(),), (0, 5), PLAIN)


class TestHands:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("finger", range(5))
    def test_each_finger_is_a_chain_from_the_wrist(self, side, finger):
        chain = [0, *range(4 * finger + 1, 4 * finger + 5)]
        picture = draw(person(**{side: row(chain)}))
        assert colours(picture) == {FINGERS[finger]}
        assert picture[40, 20:68].any(axis=-1).all()
        assert np.flatnonzero(picture.any(axis=(1, 2))).tolist() == [39, 40, 41]  # width 1; discs of radius 2 at ends

    @pytest.mark.parametrize(("confidence", "drawn"), [(0.01, False), (0.011, True)])
    def test_one_lost_point_loses_the_finger_and_no_other(self, confidence, drawn):
        points = row(range(5)) | row(range(5, 9), y=70)
        points[2] = (*points[2], confidence)
        assert ((204, 0, 0) in colours(draw(person(left=points)))) == drawn
        assert (163, 204, 0) in colours(draw(person(left=points)))

    def test_a_joint_at_x_zero_loses_its_two_segments_only(self):
        points = row(range(5)) | {2: (0, 40)}
        columns = np.flatnonzero(draw(person(left=points)).any(axis=(0, 2)))
        assert columns.tolist() == [*range(19, 34), *range(55, 70)]


class TestFace:
    @pytest.mark.parametrize("line", FACE_LINES)
    def test_each_line_is_white(self, line):
        picture = draw(person(face=row(line, gap=10)))
        assert colours(picture) == {(255, 255, 255)}
        assert picture[40, 20 : 20 + 10 * (len(line) - 1)].any(axis=-1).all()

    def test_no_jaw_no_inner_lips_no_pupils(self):
        unused = [*range(17), *range(60, 70)]
        assert is_black(draw(person(face=row(unused, gap=3))))

    @pytest.mark.parametrize(("confidence", "drawn"), [(0.1, False), (0.11, True)])
    def test_all_points_of_a_line_must_exceed_a_tenth(self, confidence, drawn):
        points = row(range(17, 22))
        points[21] = (*points[21], confidence)
        assert draw(person(face=points)).any() == drawn

    def test_half_an_eye_remains(self):
        points = row([36, 37, 38, 39]) | row([40, 41], y=60)
        points[40] = (*points[40], 0.05)
        assert not draw(person(face=points))[50:].any()
        assert draw(person(face=points)).any()


class TestOptions:
    def everything(self):
        body = {i: (8 + 4 * i, 10 + (i * 37) % 70) for i in range(25)}
        return person(body, row(range(17, 22), y=30, gap=5), row(range(5), y=50, gap=5), row(range(5), y=70, gap=5))

    def test_basic_points_only(self):
        reduced = self.everything().body.copy()
        reduced[15:19] = 0
        alone = Person(reduced, *(points * 0 for points in self.everything()[1:]))
        assert np.array_equal(draw(self.everything(), PoseConfig(basic_points_only=True)), draw(alone, PoseConfig()))

    @pytest.mark.parametrize(("height", "widths"), [(100, (1, 1)), (449, (2, 1)), (450, (3, 1)), (900, (6, 2))])
    def test_scaled_strokes_follow_the_body(self, height, widths):
        config = PoseConfig(compositing="max", stroke_width="scaled")
        tall = person(
            body={1: (40, 20), 8: (80, 20), 11: (0, 20 + height), 12: (9, 9999, 0.0)}, left=row(range(5), y=70)
        )
        picture = draw(tall, config)
        assert picture[:50, 60, 0].astype(bool).sum() == 2 * widths[0]
        thin = draw(tall._replace(body=tall.body * [0, 1, 1]), config)
        assert thin[:, 26].any(axis=-1).sum() == 2 * widths[1]

    def test_of_overlapping_people_colours_add_up_and_never_wrap(self):
        a, b = (person(body={1: (40, y), 8: (80, y)}) for y in (30, 32))
        seen = draw_openpose((a, b), SIZE, PLAIN)
        alone = [draw_openpose((one,), SIZE, PLAIN).astype(int) for one in (a, b)]
        assert np.array_equal(seen, np.minimum(sum(alone), 255))
        assert colours(seen) >= {(153, 0, 0), (255, 0, 0)}
        assert colours(draw_openpose((a, b), SIZE, MAX)) == {(153, 0, 0)}

    def test_the_tallest_alone(self):
        short, tall = (person(body={1: (x, 30), 8: (x, 30 + length)}) for x, length in ((40, 20), (80, 50)))
        lying = person(body={1: (10, 60), 8: (120, 61), 3: (20, 900, 0.0)})
        config = PoseConfig(people="tallest")
        for people in ((short, tall, lying), (tall, lying, short), (person(), tall)):
            assert np.array_equal(draw_openpose(people, SIZE, config), draw(tall, config))
        assert is_black(draw_openpose((person(),), SIZE, config))
        assert is_black(draw_openpose((), SIZE, config))


class TestDrop:
    def test_no_drop_changes_nothing(self):
        who = TestOptions().everything()
        assert np.array_equal(draw(who, PLAIN, PoseDrop()), draw(who, PLAIN))

    @pytest.mark.parametrize(("index", "pair"), [(i, pair) for i, (pair, _) in enumerate(LIMBS)])
    def test_a_dropped_limb_is_absent(self, index, pair):
        limb = person(body=row(pair, gap=30))
        assert is_black(draw(limb, drop=PoseDrop(segments=frozenset({index}))))
        assert draw(limb, drop=PoseDrop(segments=frozenset(range(24)) - {index})).any()

    @pytest.mark.parametrize(
        ("who", "dropped"),
        [
            (person(left=row(range(5))), "left_hand"),
            (person(right=row(range(5))), "right_hand"),
            (person(face=row(range(17, 22))), "face"),
        ],
    )
    def test_hands_and_face_go_as_a_whole(self, who, dropped):
        for name in ("left_hand", "right_hand", "face"):
            assert is_black(draw(who, drop=PoseDrop(**{name: True}))) == (name == dropped)

    def test_noise_moves_the_head_and_the_face(self):
        drop = PoseDrop(head_noise=((5, 3), (0, 0), (0, 0), (0, 0), (0, 0)), face_shift=(-4, 6))
        who = person(body={0: (40, 20), 1: (40, 60), 8: (70, 60)}, face=row(range(17, 22)))
        moved = person(body={0: (45, 23), 1: (40, 60), 8: (70, 60)}, face=row(range(17, 22), y=46, start=16))
        before = who.body.copy()
        assert np.array_equal(draw(who, drop=drop), draw(moved))
        assert np.array_equal(who.body, before)

    def test_noise_does_not_bring_back_what_was_not_found(self):
        noise = PoseDrop(head_noise=((9, 9),) * 5, face_shift=(9, 9))
        lost = person(body={0: (0, 0), 15: (0, 0, 0), 16: (30, 30, 0), 1: (60, 60), 17: (50, 50)})
        unseen = {i: (0, 0) for i in range(17, 22)}
        assert is_black(draw(lost._replace(face=person(face=unseen).face), drop=noise))

    def test_each_part_is_drawn_by_itself(self):
        rng = np.random.default_rng(0)
        drops = [draw_drop(PoseConfig(random_drop=0.25), rng) for _ in range(2000)]
        shares = [np.mean([i in d.segments for d in drops]) for i in range(24)]
        shares += [np.mean([i in d.parts for d in drops]) for i in range(1, 25)]
        shares += [np.mean([getattr(d, name) for d in drops]) for name in ("left_hand", "right_hand", "face")]
        assert np.abs(np.array(shares) - 0.25).max() < 0.045  # 4.6 standard errors
        assert {i for d in drops for i in d.segments} == set(range(24))
        assert {i for d in drops for i in d.parts} == set(range(1, 25))
        together = np.mean([0 in d.segments and 1 in d.parts for d in drops])
        assert abs(together - 0.0625) < 0.025

    def test_never_and_always(self):
        rng = np.random.default_rng(0)
        assert draw_drop(PoseConfig(random_drop=0, remove_face_labels=True), rng) == PoseDrop()
        everything = draw_drop(PoseConfig(random_drop=1), rng)
        assert everything == PoseDrop(
            segments=frozenset(range(24)), left_hand=True, right_hand=True, face=True, parts=frozenset(range(1, 25))
        )
        assert is_black(draw(TestOptions().everything(), drop=everything))

    def test_noise_comes_with_removed_faces_alone(self):
        rng = np.random.default_rng(1)
        assert draw_drop(PLAIN, rng).head_noise == ()
        drops = [draw_drop(PoseConfig(remove_face_labels=True), rng) for _ in range(1000)]
        assert len(drops[0].head_noise) == 5
        assert np.std([d.head_noise for d in drops]) == pytest.approx(5, rel=0.05)
        assert np.std([d.face_shift for d in drops]) == pytest.approx(2, rel=0.08)

    def test_equal_generators_draw_equally(self):
        config = PoseConfig(random_drop=0.5, remove_face_labels=True)
        assert draw_drop(config, np.random.default_rng(3)) == draw_drop(config, np.random.default_rng(3))


class TestDensePose:
    def iuv(self):
        image = np.full((5, 5, 3), 200, np.uint8)
        image[..., 2] = np.arange(25).reshape(5, 5)
        return image

    def test_parts_left_out_lose_all_channels(self):
        before = self.iuv()
        seen = prepare_densepose(before, PLAIN, "a.png", drop=PoseDrop(parts=frozenset({1, 24})))
        assert is_black(seen[0, 1]) and is_black(seen[4, 4])
        assert np.array_equal(before, self.iuv())
        before[0, 1] = before[4, 4] = 0
        assert np.array_equal(seen, before)

    def test_the_head_goes_without_a_drop(self):
        seen = prepare_densepose(self.iuv(), PoseConfig(remove_face_labels=True), "a.png")
        assert is_black(seen[4, 3:])
        assert seen[4, 2].tolist() == [200, 200, 22]
        assert np.array_equal(prepare_densepose(self.iuv(), PLAIN, "a.png"), self.iuv())

    def test_the_other_channel_order_is_explained(self):
        with pytest.raises(DataError, match=r"a\.png: part id 200 in the third channel.*V, U and part id"):
            prepare_densepose(self.iuv()[..., ::-1], PLAIN, "a.png")

    @pytest.mark.parametrize("wrong", [np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3))])
    def test_other_shapes_are_refused(self, wrong):
        with pytest.raises(ShapeError, match=r"a\.png: a DensePose map is 8-bit"):
            prepare_densepose(wrong, PLAIN, "a.png")


class TestMaps:
    def test_values_by_hand(self):
        maps = np.array([[[0, 255, 24, 0, 255, 153]], [[51, 127, 12, 51, 24, 0]]], np.uint8)
        seen = pose_to_float(maps, PLAIN)
        assert seen.dtype == np.float32
        expected = [[[-1, 1, 1, -1, 1, 0.2]], [[-0.6, -1 / 255, 0, -0.6, 24 / 127.5 - 1, -1]]]
        np.testing.assert_allclose(seen, expected, atol=1e-6)
        assert seen.min() == -1 and seen.max() == 1

    def test_part_ids_follow_the_reference_formula(self):
        maps = np.zeros((1, 25, 3), np.uint8)
        maps[0, :, 2] = np.arange(25)
        c = np.arange(25) / 127.5 - 1
        seen = pose_to_float(maps, PoseConfig(openpose=False))[0, :, 2]
        np.testing.assert_allclose(seen, ((c * 0.5 + 0.5) * 255 / 24 - 0.5) / 0.5, atol=1e-6)
        assert seen[23] == pytest.approx(0.9167, abs=1e-4) and seen[24] == 1

    def test_limbs_alone_are_scaled_evenly(self):
        maps = np.full((2, 4, 4, 3), 255, np.uint8)
        assert (pose_to_float(maps, PoseConfig(densepose=False)) == 1).all()

    def test_head_of_densepose(self):
        maps = np.zeros((5, 5, 6), np.uint8)
        maps[..., 2] = np.arange(25).reshape(5, 5)
        mask = head_mask(np.moveaxis(pose_to_float(maps, PLAIN), -1, 0), PLAIN)
        assert np.argwhere(mask).tolist() == [[4, 3], [4, 4]]

    def test_head_of_limbs_is_the_neck(self):
        config = PoseConfig(densepose=False, compositing="max")
        limbs = draw(person(body={0: (40, 20), 1: (40, 60), 8: (42, 90)}), config)
        mask = head_mask(np.moveaxis(pose_to_float(limbs, config), -1, 0), config)
        assert np.array_equal(mask, (limbs == (153, 0, 51)).all(axis=-1))
        assert mask.any() and not mask[70:].any()

    def test_head_of_a_clip(self):
        assert head_mask(np.ones((2, 4, 6, 8, 9), np.float32), PLAIN).shape == (2, 4, 8, 9)

    def test_picture_has_the_limbs_over_the_parts(self):
        maps = np.zeros((1, 3, 6), np.uint8)
        maps[0, :, :3] = (10, 20, 24)
        maps[0, 0, 2] = 12
        maps[0, 2, 3:] = (0, 0, 5)
        assert pose_picture(maps, PLAIN).tolist() == [[[10, 20, 128], [10, 20, 255], [0, 0, 5]]]
        assert pose_picture(maps[..., :3], PoseConfig(openpose=False))[0, 2].tolist() == [10, 20, 255]
        assert pose_picture(maps[..., 3:], PoseConfig(densepose=False))[0, 2].tolist() == [0, 0, 5]

    @pytest.mark.parametrize("function", [pose_to_float, pose_picture])
    def test_other_channels_are_refused(self, function):
        with pytest.raises(ShapeError, match=r"with 6 channels as configured, got \(4, 4, 3\)"):
            function(np.zeros((4, 4, 3), np.uint8), PLAIN)

    def test_head_of_other_channels_is_refused(self):
        with pytest.raises(ShapeError, match="C, H, W"):
            head_mask(np.zeros((4, 4, 6), np.float32), PLAIN)


class TestCentreCrop:
    @pytest.mark.parametrize(
        ("width", "columns"),
        [(896, (224, 672)), (448, (128, 320)), (128, (32, 96)), (255, (95, 159)), (1280, (320, 960))],
    )
    def test_by_hand(self, width, columns):
        assert centre_crop_columns(width) == columns

    def test_nothing_left(self):
        with pytest.raises(ConfigError, match="keeps nothing of 127 columns; scale the frames to at least 128"):
            centre_crop_columns(127)


class TestRealFrame:
    def test_limbs_lie_on_the_dancer(self):
        root = shared("pose_vid2vid")
        name = "dancer_b/frame001500"
        people = read_openpose((root / f"train_openpose/{name}_keypoints.json").read_bytes(), name)
        stored = cv2.cvtColor(cv2.imread(str(root / f"train_densepose/{name}_IUV.png")), cv2.COLOR_BGR2RGB)
        dense = prepare_densepose(stored, PLAIN, name)
        limbs = draw_openpose(people, dense.shape[:2], PLAIN)
        inside = (dense[..., 2] > 0)[limbs.any(axis=-1)].mean()
        assert len(people) == 1 and inside > 0.85
        values = pose_to_float(np.concatenate([dense, limbs], axis=-1), PLAIN)
        rows = np.flatnonzero(head_mask(np.moveaxis(values, -1, 0), PLAIN).any(axis=1))
        assert rows.min() < people[0].body[0, 1] < rows.max() < people[0].body[8, 1]
