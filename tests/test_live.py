"""The live page: what is said on the wire, the brush, one session, and the server among clients that misbehave."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import struct
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_driving import expressions, placed, turned, walk
from tiny_bundle import PALETTE, SIZE, SPEC, FakeEngine, label_maps, manifest, write_tiny

from export.live.brush import MAX_KEPT, MAX_OF_A_STROKE, MAX_STROKES, Overlay
from export.live.pictures import ConditionPictures, OneByOne, Reader, ReadingConfig, Watched, builtin_clip, cover
from export.live.protocol import (
    COMMANDS,
    Clear,
    FrameMessage,
    Hello,
    Hold,
    PictureMessage,
    Restart,
    Settings,
    Source,
    Stroke,
    jpeg_size,
    pack_frame,
    pack_picture,
    parse_command,
    unpack_frame,
    unpack_picture,
)
from export.live.session import LiveBundle, LiveConfig, LiveSession, decode_picture
from export.stream import ConditionMap, Stream
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.driving.body import BodyProfile
from fastv2v.data.driving.config import DrivingConfig
from fastv2v.data.driving.face import FaceProfile
from fastv2v.data.driving.profile import DrivingProfile
from fastv2v.data.driving.seen import SeenPerson
from fastv2v.data.face import FaceConfig as DrawnFace
from fastv2v.data.pose import PoseConfig
from fastv2v.data.prepare import landmarks
from fastv2v.data.prepare.body import BodyConfig
from fastv2v.data.prepare.edges import EdgeConfig
from fastv2v.data.prepare.palette import Palette, PaletteConfig, palette_record, read_palette
from fastv2v.data.world import CLASS_NAMES
from fastv2v.errors import ConfigError, DataError, MediaError, MissingExtraError
from fastv2v.mark import SYNTHETIC_COMMENT
from fastv2v.run import write_json

HAS_SERVER = all(importlib.util.find_spec(name) for name in ("fastapi", "httpx", "uvicorn"))
needs_server = pytest.mark.skipif(not HAS_SERVER, reason="needs the extra 'live' and httpx")


FACE = ConditionSpec(kind="maps", encoder="face", map_channels=15, face=DrawnFace(background="none", crop="none"))


def driving(kind, **parts):
    """What a bundle keeps of a data set whose frames were 32x48."""
    return DrivingProfile(
        kind=kind, size=(32, 48), resized=SIZE, offset=(0, 0), interpolation="area", prepared=True, **parts
    )


def jpeg(height=16, width=24, seed=0, **options):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    flags = [x for pair in options.items() for x in (getattr(cv2, pair[0]), pair[1])]
    return cv2.imencode(".jpg", picture, flags)[1].tobytes()


class TestProtocol:
    @settings(deadline=None)
    @given(
        number=st.integers(0, 2**32 - 1),
        time_ms=st.floats(allow_nan=False, allow_infinity=False),
        data=st.binary(min_size=1),
    )
    def test_pictures_come_back(self, number, time_ms, data):
        message = PictureMessage(number, time_ms, data)
        assert unpack_picture(pack_picture(message)) == message

    @settings(deadline=None)
    @given(
        index=st.integers(0, 2**32 - 1),
        delay=st.floats(0, 1e6, width=32),
        is_keyframe=st.booleans(),
        condition=st.binary(),
        frame=st.binary(),
        reach=st.none() | st.floats(0, 1e6, width=32),
        is_held=st.booleans(),
        is_guided=st.booleans(),
    )
    def test_frames_come_back(self, index, delay, is_keyframe, condition, frame, reach, is_held, is_guided):
        message = FrameMessage(index, 7, 1.5, delay, is_keyframe, condition, frame, reach, is_held, is_guided)
        assert unpack_frame(pack_frame(message)) == message

    def test_the_documented_bytes(self):
        assert pack_picture(PictureMessage(258, 1.0, b"J")) == bytes.fromhex("0101000002010000000000000000f03f") + b"J"
        packed = pack_frame(FrameMessage(1, 2, 1.0, 0.5, True, b"ab", b"c", 1.0, is_guided=True))
        assert packed == bytes.fromhex("010205000100000002000000000000000000f03f0000003f0000803f02000000") + b"abc"

    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_anything_else_is_refused_in_a_sentence(self, data):
        for read in (unpack_picture, unpack_frame, jpeg_size):
            try:
                read(data)
            except DataError as error:
                assert "\n" not in str(error)

    def test_a_time_that_is_none_is_refused(self):
        with pytest.raises(DataError, match="not a number"):
            unpack_picture(struct.pack("<BBHId", 1, 1, 0, 3, math.nan) + b"J")

    @settings(deadline=None)
    @given(st.text(max_size=60) | st.sampled_from(["[" * 16000, '{"type": "gap"}', "9" * 5000, '{"type": []}']))
    def test_texts_that_are_no_commands(self, text):
        with pytest.raises(DataError):
            parse_command(text)

    @settings(deadline=None)
    @given(
        kind=st.sampled_from(sorted(COMMANDS)),
        content=st.dictionaries(
            st.sampled_from(["token", "gap", "on", "label", "size", "points", "name", "engine", "begins", "causal"]),
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.lists(st.floats())),
        ),
    )
    def test_commands_are_whole_or_refused(self, kind, content):
        try:
            command = parse_command(json.dumps({"type": kind, **content}))
        except DataError:
            return
        if isinstance(command, Stroke):
            assert all(math.isfinite(value) for point in command.points for value in point)
        if isinstance(command, Settings) and command.gap is not None:
            assert 1 <= command.gap <= 32

    def test_commands(self):
        assert parse_command('{"type": "hello", "token": "x"}') == Hello("x")
        assert parse_command('{"type": "settings", "gap": 3, "causal": true}') == Settings(gap=3, causal=True)
        stroke = parse_command('{"type": "stroke", "label": 1, "size": 4, "points": [[1, 2.5]]}')
        assert stroke == Stroke(1, 4.0, ((1.0, 2.5),), begins=True)
        with pytest.raises(DataError, match="half a character"):
            parse_command('{"type": "hello", "token": "\\ud800"}')
        with pytest.raises(DataError, match="has no 'speed'; it has on"):
            parse_command('{"type": "hold", "on": true, "speed": 2}')


class TestJpeg:
    @pytest.mark.parametrize("size", [(16, 24), (1, 1), (301, 7)])
    def test_size_without_decoding(self, size):
        assert jpeg_size(jpeg(*size)) == size

    def test_a_bomb_is_refused_before_it_is_decoded(self):
        data = bytearray(jpeg())
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
        with pytest.raises(DataError, match="65500x65500 pixels is not taken"):
            decode_picture(bytes(data), 4_194_304)

    @pytest.mark.parametrize("begin", [b"\xff\x00", b"\xff\xff\x00", b"\xff\x02", b"\xff\xbf"])
    def test_a_bomb_within_a_piece_that_decoders_look_into(self, begin):
        # Decoders take FF 00 for a stuffed byte and go on right behind it, where the true size stands.
        large, small = bytearray(jpeg()), jpeg()
        at = small.index(b"\xff\xc0")
        large[at + 5 : at + 9] = struct.pack(">HH", 6000, 6000)
        inner = bytes(large[2:])
        data = b"\xff\xd8" + begin + struct.pack(">H", len(inner) + 2) + inner + small[at : at + 19] + bytes(10)
        with pytest.raises(DataError, match="baseline"):
            decode_picture(data, 4_194_304)

    def test_progressive_files_are_refused(self):
        with pytest.raises(DataError, match="baseline"):
            jpeg_size(jpeg(IMWRITE_JPEG_PROGRESSIVE=1))

    def test_other_files_and_broken_ones(self):
        with pytest.raises(DataError, match="this is none"):
            jpeg_size(b"\x89PNG\r\n")
        with pytest.raises(DataError):
            decode_picture(jpeg()[:60], 10_000)
        with pytest.raises(DataError, match="broke off"):
            jpeg_size(jpeg()[:8])

    def test_colours_are_rgb(self):
        red = np.zeros((16, 16, 3), np.uint8)
        red[..., 2] = 255
        picture = decode_picture(cv2.imencode(".jpg", red)[1].tobytes(), 10_000)
        assert picture[8, 8, 0] > 240
        assert picture[8, 8, 2] < 15


class TestBrush:
    def test_a_dot_is_a_disc(self):
        overlay = Overlay((40, 40), 3)
        overlay.add(Stroke(2, 10.0, ((20, 20),)))
        painted = overlay.over(np.zeros((40, 40), np.uint8)) == 2
        y, x = np.mgrid[:40, :40]
        distance = np.hypot(x - 20, y - 20)
        assert painted[distance <= 4].all()
        assert not painted[distance > 6.5].any()

    def test_undo_takes_back_what_belongs_together(self):
        overlay, empty = Overlay((20, 20), 3), np.zeros((20, 20), np.int64)
        overlay.add(Stroke(1, 4.0, ((3, 3), (16, 3))))
        first = overlay.over(empty)
        overlay.add(Stroke(2, 4.0, ((3, 10),)))
        overlay.add(Stroke(2, 4.0, ((3, 10), (16, 16)), begins=False))
        assert overlay.num_strokes == 2
        overlay.undo()
        assert np.array_equal(overlay.over(empty), first)
        overlay.undo()
        overlay.undo()
        assert not overlay.over(empty).any()

    def test_rubbing_out_shows_the_map_again(self):
        overlay, labels = Overlay((20, 20), 3), np.full((20, 20), 2, np.uint8)
        overlay.add(Stroke(1, 8.0, ((10, 10),)))
        overlay.add(Stroke(-1, 30.0, ((10, 10),)))
        assert np.array_equal(overlay.over(labels), labels)

    def test_old_strokes_stay_and_memory_does_not_grow(self):
        overlay = Overlay((8, 8), 2)
        overlay.add(Stroke(1, 2.0, ((1, 1),)))
        for _ in range(MAX_STROKES):
            overlay.add(Stroke(0, 2.0, ((6, 6),)))
        assert overlay.num_strokes == MAX_STROKES
        for _ in range(MAX_STROKES + 5):
            overlay.undo()
        assert overlay.over(np.zeros((8, 8), np.uint8))[1, 1] == 1
        overlay.clear()
        assert not overlay.over(np.zeros((8, 8), np.uint8)).any()

    def test_strokes_of_many_points_do_not_fill_the_memory(self):
        overlay, line = Overlay((8, 8), 2), tuple((float(x % 8), 4.0) for x in range(256))
        for _ in range(2 * MAX_KEPT // 256):
            overlay.add(Stroke(1, 1.0, line, begins=False))
        assert MAX_KEPT // MAX_OF_A_STROKE - 1 <= overlay.num_strokes <= MAX_KEPT // MAX_OF_A_STROKE
        for _ in range(20):
            overlay.undo()
        assert overlay.num_strokes == 0
        assert overlay.over(np.zeros((8, 8), np.uint8))[4].all()

    def test_unknown_classes(self):
        with pytest.raises(DataError, match="no class 3; the bundle has 0 to 2"):
            Overlay((8, 8), 3).add(Stroke(3, 4.0, ((1, 1),)))


class TestPictures:
    def test_one_by_one_keeps_the_state_of_a_generator(self):
        def running(pictures):
            total = 0
            for picture in pictures:
                if not picture.any():
                    raise DataError("nothing is seen")
                total += int(picture.sum())
                yield total

        ask = OneByOne(running)
        assert [ask(np.full(1, x)) for x in (1, 2, 3)] == [1, 3, 6]
        with pytest.raises(DataError):
            ask(np.zeros(1))
        assert [ask(np.full(1, x)) for x in (4, 5)] == [4, 9]  # an error ends one picture
        assert ask(np.full(2, 1)) == 2  # another size begins anew

    def test_cover_takes_the_middle(self):
        picture = np.zeros((20, 60, 3), np.uint8)
        picture[:, 20:40] = 200
        assert (cover(picture, (10, 10)) == 200).all()

    def test_colours_of_classes(self):
        reader = Reader(manifest(palette=PALETTE))
        picture = np.array(PALETTE, np.uint8)[label_maps(1)[0]]
        assert reader.reading == "colours"
        assert np.array_equal(reader(picture).labels, label_maps(1)[0])

    def test_edges(self):
        maps = manifest(condition=ConditionSpec(kind="maps", map_channels=3))
        square = np.zeros((*SIZE, 3), np.uint8)
        square[4:12, 6:18] = 255
        made = Reader(maps)(square).condition.maps
        assert set(np.unique(made)) == {-1.0, 1.0}
        blind = driving("edges", edges=EdgeConfig(low=1999.0, high=2000.0))
        large = cv2.resize(square, None, fx=4, fy=4)
        assert Reader(maps, None, blind)(large).condition.maps.max() == -1  # the bundle says which edges it knows
        asked = ReadingConfig(edges=EdgeConfig(low=20.0))
        assert Reader(maps, asked, blind)(large).condition.maps.max() > -1
        assert (Reader(maps, ReadingConfig(reading="picture"))(square).maps[:, 8, 12] == 1).all()

    def test_a_palette_is_written_and_read_and_needs_no_option(self, tmp_path):
        centres = np.array([[0, 0, 0, 0], [30, 0, 0, 0], [45, 0, 0, 0], [60, 0, 0, 0]], np.float32)
        fitted = Palette(centres, np.array(PALETTE, np.uint8), 2.0)
        write_json(tmp_path / "palette.json", palette_record(fitted, PaletteConfig(classes=4, hold=0.3)))
        again, config = read_palette(tmp_path / "palette.json")
        assert np.array_equal(again.centres, centres)
        assert (again.variance, config) == (2.0, PaletteConfig(classes=4, hold=0.3))
        reader = Reader(manifest(palette=PALETTE), None, driving("palette", palette=(again, config)))
        assert (reader.reading, reader.wanted, reader.is_whole, reader.warn_above) == ("palette", (32, 48), False, None)
        half = np.zeros((64, 96, 3), np.uint8)
        half[:, 48:] = 255
        labels = reader(half).condition.labels
        assert labels.shape == SIZE
        assert labels[8, 3] == 0
        assert labels[8, 20] == 3

    @pytest.mark.parametrize(
        "content", ["", "[]", '{"centres": 3}', '{"centres": [], "colours": [], "variance": 1, "config": {}}']
    )
    def test_broken_palettes(self, tmp_path, content):
        (tmp_path / "palette.json").write_text(content)
        with pytest.raises(DataError, match="palette"):
            read_palette(tmp_path / "palette.json")

    def test_what_no_picture_becomes(self):
        with pytest.raises(ConfigError, match="a camera cannot drive it: label maps come from"):
            Reader(manifest())
        with pytest.raises(
            ConfigError, match=r"tiny lacks driving.json, what others need to drive it; export it again"
        ):
            Reader(manifest(condition=FACE, size=(32, 32)))
        with pytest.raises(ConfigError, match="read pictures as colours"):
            Reader(manifest(palette=PALETTE), ReadingConfig(reading="edges"))

    def test_clips_suit_their_bundles(self):
        for spec, size in ((SPEC, SIZE), (ConditionSpec(kind="maps", map_channels=3), SIZE), (FACE, (32, 32))):
            kept = builtin_clip(manifest(condition=spec, size=size))
            clip = list(kept)
            assert len(clip) == 48
            assert all(a is b for a, b in zip(kept, clip, strict=True))
            first = clip[0].labels if spec.kind == "labels" else clip[0].maps
            assert first.shape[-2:] == size
            assert len(np.unique(first)) > 1
        with pytest.raises(ConfigError, match="no built-in clip"):
            builtin_clip(manifest(condition=ConditionSpec(kind="maps", map_channels=5)))

    def test_the_built_in_street_of_guided_bundles_says_which_points_are_seen(self):
        spec = ConditionSpec(class_names=tuple(CLASS_NAMES), guidance_levels=2)
        first, later = itertools.islice(builtin_clip(manifest(condition=spec, size=(32, 64))), 2)
        assert [ids.shape for ids in first.points] == [(32, 64), (16, 32)]
        assert np.isin(first.points[0][first.points[0] >= 0], later.points[0]).mean() > 0.3
        plain = ConditionSpec(class_names=tuple(CLASS_NAMES))
        assert next(iter(builtin_clip(manifest(condition=plain, size=(32, 64))))).points is None

    def test_a_picture_that_shows_nothing_ends_nothing(self):
        def reader(picture):
            if picture.max() == 0:
                raise DataError("nothing is seen")
            return ConditionMap(labels=picture)

        closed = []
        reader.close = lambda: closed.append(0)
        watched = Watched(iter([np.zeros(1), np.ones(1)]), reader, lambda: closed.append(1))
        with pytest.raises(DataError):
            next(watched)
        assert next(watched).labels == 1
        watched.close()
        assert closed == [0, 1]


class TestPeople:
    """Faces and bodies that are found in pictures, fitted to whom the bundle was trained on."""

    def faces(self, monkeypatch, found):
        """A finder that takes the landmarks from a list."""
        monkeypatch.setattr("export.driving.faces_seen", lambda pictures, config: (found.pop(0) for _ in pictures))

    def reader(self, **options):
        trained = FaceProfile.of(placed(expressions(24)))
        made = manifest(condition=FACE, size=(32, 32))
        profile = replace(driving("face", face=trained), size=(240, 240), resized=(32, 32))
        return Reader(made, ReadingConfig(**options), profile), made

    def test_another_face_becomes_the_trained_one_and_says_how_far_it_lies(self, monkeypatch):
        own = placed(expressions(24))
        found = [*turned(own[:6], 2.0, 0.0, (300, 40)), None, own[0] + np.eye(68, 2) * 900]
        self.faces(monkeypatch, found)
        reader, made = self.reader()
        assert (reader.is_whole, reader.warn_above, reader.wanted, reader.notes) == (True, 1.5, (240, 240), [])
        seen = [reader(np.zeros((480, 640, 3), np.uint8)) for _ in range(8)]
        drawn = [np.argwhere(ConditionPictures(made)(one.condition)[..., 0] > 0) for one in seen]
        # Twice as large and elsewhere in the picture, and yet where the trained face was.
        assert all(np.abs(points.mean(axis=0) - 16).max() < 6 for points in drawn[:6])
        assert max(one.reach for one in seen[:6]) < 1.5 < seen[7].reach
        assert [one.is_held for one in seen] == [False] * 6 + [True, False]

    def test_before_anybody_is_found_the_trained_one_rests(self, monkeypatch):
        self.faces(monkeypatch, [None])
        reader, made = self.reader()
        first = reader(np.zeros((480, 640, 3), np.uint8))
        assert first.is_held
        assert ConditionPictures(made)(first.condition).any()

    def test_the_page_is_told_of_every_frame(self, monkeypatch, tmp_path):
        self.faces(monkeypatch, [*placed(expressions(24))[:2], None])
        reader, _ = self.reader()
        folder = write_tiny(tmp_path / "face.v2v", condition=FACE, size=(32, 32))

        def opener(folder, **options):
            return Stream(FakeEngine(), manifest(condition=FACE, size=(32, 32)))

        bundle = LiveBundle(folder, {}, lambda: reader, opener=opener)
        told = bundle.describe()
        assert (told["whole"], told["wanted"], told["warn_above"]) == (True, [240, 240], 1.5)
        with Page(bundle) as page:
            page.session.tell(Settings(causal=True))
            for number in range(3):
                page.session.give(PictureMessage(number, 0.0, jpeg(48, 64)))
                page.until(lambda n=number: len(page.frames) == n + 1)
        assert [frame.is_held for frame in page.frames] == [False, False, True]
        assert all(0 <= frame.reach < 1.5 for frame in page.frames)
        assert not any(frame.is_guided for frame in page.frames)

    def test_people_are_found_by_mediapipe_which_ends_with_the_page(self, monkeypatch):
        pose = PoseConfig(densepose=True)
        spec = ConditionSpec(kind="maps", encoder="pose", map_channels=pose.channels, pose=pose)
        profile = replace(
            driving("pose", body=BodyProfile.of(walk(24))), size=(240, 240), resized=(48, 48), prepared=False
        )
        people, ended = [SeenPerson(person, None) for person in walk(24)], []

        def seen(pictures, config):
            try:
                for _, person in zip(pictures, people, strict=False):
                    yield person._replace(parts=np.zeros((240, 240, 3), np.uint8))
            finally:
                ended.append(config.complexity)

        monkeypatch.setattr("export.driving.people_seen", seen)
        reader = Reader(manifest(condition=spec, size=(48, 48)), ReadingConfig(pose=BodyConfig(complexity=0)), profile)
        assert (reader.reading, reader.is_whole, reader.warn_above) == ("pose", True, 1.5)
        assert "only a stand-in" in reader.notes[0]
        made = [reader(np.zeros((240, 240, 3), np.uint8)) for _ in range(3)]
        assert made[0].condition.maps.shape == (spec.map_channels, 48, 48)
        assert all(one.reach is not None for one in made)
        reader.close()
        assert ended == [0]

    def test_missing_finders_are_named_before_anybody_connects(self, monkeypatch):
        def missing():
            raise MissingExtraError("install the extra 'face'")

        monkeypatch.setattr(landmarks, "check_installed", missing)
        with pytest.raises(MissingExtraError, match="'face'"):
            self.reader()[0].check()

    def test_what_needs_later_pictures_is_refused(self):
        with pytest.raises(ConfigError, match="no end to wait for"):
            ReadingConfig(driving=DrivingConfig(fit="sequence"))
        with pytest.raises(ConfigError, match="no such file; check --background"):
            ReadingConfig(background=Path("nowhere.png"))

    def test_backgrounds_that_are_lacking_are_told(self, tmp_path):
        reader, _ = self.reader()
        canny = ConditionSpec(kind="maps", encoder="face", map_channels=15, face=DrawnFace(background="canny"))
        trained = driving("face", face=FaceProfile.of(placed(expressions(24))))
        bundle = manifest(condition=canny, size=(32, 32))
        assert "left black" in Reader(bundle, None, trained).notes[0]
        frame = tmp_path / "frame.png"
        cv2.imwrite(str(frame), np.zeros((32, 32, 3), np.uint8))
        assert Reader(bundle, ReadingConfig(background=frame), trained).notes == []
        assert reader.notes == []


def test_guided_frames_are_marked(tmp_path):
    spec = ConditionSpec(class_names=SPEC.class_names, guidance_levels=1)
    folder = write_tiny(tmp_path / "guided.v2v", palette=PALETTE, condition=spec)
    labels, points = label_maps(1)[0], [np.zeros(SIZE, np.int32)]
    sources = {
        "guided": lambda: iter([ConditionMap(labels=labels, points=points)]),
        "plain": lambda: iter([ConditionMap(labels=labels)]),
    }
    bundle = LiveBundle(folder, sources, None, opener=fake_opener)
    assert bundle.describe()["guidance"]
    for name in sources:
        with Page(bundle) as page:
            page.session.tell(Source(name))
            page.until(lambda p=page: p.frames)
        assert page.frames[0].is_guided == (name == "guided")


class Page:
    """Collects what a session says."""

    def __init__(self, bundle):
        self.frames, self.texts = [], []
        self.session = LiveSession(bundle, self.take)

    def take(self, message):
        if isinstance(message, bytes):
            self.frames.append(unpack_frame(message))
        else:
            self.texts.append(json.loads(message))

    def __enter__(self):
        self.session.start()
        return self

    def __exit__(self, *exception):
        self.session.close()
        assert not self.session.is_running

    def until(self, holds, seconds=20.0):
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, self.texts
            time.sleep(0.005)

    def last(self, kind):
        return next((text for text in reversed(self.texts) if text["type"] == kind), None)


def fake_opener(folder, *, engine, precision, threads, made=None, **options):
    stream = Stream(FakeEngine(**options), manifest(palette=PALETTE))
    if made is not None:
        made.append(engine)
    return stream


@pytest.fixture
def folder(tmp_path):
    return write_tiny(tmp_path / "tiny.v2v", palette=PALETTE, fps=200.0)


@pytest.fixture
def bundle(folder):
    clip = [ConditionMap(labels=labels) for labels in label_maps(6)]
    reader = partial(Reader, manifest(palette=PALETTE))
    return LiveBundle(folder, {"clip": lambda: iter(clip)}, reader, opener=fake_opener)


def shown(labels):
    """A picture of a label map as the page sends it."""
    picture = np.array(PALETTE, np.uint8)[labels]
    return cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


class TestSession:
    def test_pictures_become_frames_in_order(self, bundle):
        with Page(bundle) as page:
            page.session.tell(Settings(causal=True))
            for number, labels in enumerate(label_maps(6), 1):
                page.session.give(PictureMessage(number, 10.0 * number, shown(labels)))
                page.until(lambda n=number: len(page.frames) == n)
        assert [frame.number for frame in page.frames] == [1, 2, 3, 4, 5, 6]
        assert [frame.time_ms for frame in page.frames] == [10, 20, 30, 40, 50, 60]
        assert [frame.is_keyframe for frame in page.frames] == [True, False, False, False, True, False]
        assert all(frame.delay_ms >= 0 for frame in page.frames)
        assert decode_picture(page.frames[0].frame, 10_000).shape == (*SIZE, 3)

    def test_stale_pictures_are_dropped_and_counted(self, folder):
        reader = partial(Reader, manifest(palette=PALETTE))
        slow = LiveBundle(folder, {}, reader, opener=partial(fake_opener, delay_s=0.05))
        with Page(slow) as page:
            page.session.tell(Settings(gap=1, causal=True))
            for number in range(1, 101):
                page.session.give(PictureMessage(number, 0.0, shown(label_maps(1)[0])))
            page.until(lambda: page.frames and page.frames[-1].number == 100)
            page.until(lambda: page.last("stats") is not None)
        assert len(page.frames) <= 5
        assert page.last("stats")["dropped"] >= 95

    def test_a_clip_plays_over_and_over_and_settings_change(self, bundle):
        with Page(bundle) as page:
            page.session.tell(Source("clip"))
            page.until(lambda: len(page.frames) > 15)
            page.session.tell(Settings(gap=2, grade="fast"))
            page.until(lambda: (page.last("state") or {}).get("gap") == 2)
            seen = len(page.frames)
            page.until(lambda: len(page.frames) > seen + 10)
        state = page.last("state")
        assert (state["grade"], state["source"], state["waits"]) == ("fast", "clip", 3)
        later = page.frames[-6:]
        assert [frame.is_keyframe for frame in later] == [frame.index % 2 == 0 for frame in later]

    def test_streams_begin_with_the_real_frame_and_starting_over_returns_to_it(self, folder):
        seed = np.full((*SIZE, 3), 200, np.uint8)
        clip = {"clip": lambda: iter([ConditionMap(labels=x) for x in label_maps(6)])}
        seeded = LiveBundle(folder, clip, None, seed_frame=seed, opener=fake_opener)
        with Page(seeded) as page:
            page.session.tell(Source("clip"))
            page.until(lambda: len(page.frames) > 5)
            page.session.tell(Restart())
            page.until(lambda: len([frame for frame in page.frames if frame.index == 0]) > 1)
        for frame in page.frames:
            if frame.index == 0:
                assert np.abs(decode_picture(frame.frame, 10_000).astype(int) - 200).max() < 3

    def test_painting_on_a_held_frame_shows(self, bundle):
        with Page(bundle) as page:
            page.session.tell(Source("clip"))
            page.until(lambda: page.frames)
            page.session.tell(Hold(True))
            page.until(lambda: page.last("state")["held"])
            page.session.tell(Stroke(1, 60.0, ((12, 8),)))
            crimson = np.array(PALETTE[1])
            page.until(
                lambda: np.abs(decode_picture(page.frames[-1].condition, 10_000).astype(int) - crimson).max() < 30
            )
            page.session.tell(Clear())
            page.until(lambda: np.ptp(decode_picture(page.frames[-1].condition, 10_000)[..., 0]) > 60)

    def test_what_is_refused_is_told_and_the_stream_goes_on(self, bundle):
        with Page(bundle) as page:
            page.session.give(PictureMessage(1, 0.0, b"not a JPEG"))
            page.until(lambda: page.last("error") is not None)
            assert "JPEG" in page.last("error")["message"]
            for command in (
                Settings(engine="abacus"),
                Settings(grade="best"),
                Source("moon"),
                Stroke(9, 3.0, ((1, 1),)),
            ):
                said = len([text for text in page.texts if text["type"] == "error"])
                page.session.tell(command)
                page.until(lambda n=said: len([t for t in page.texts if t["type"] == "error"]) > n)
            page.until(lambda: page.texts[-1]["type"] == "state")  # the page asked for more and shows what is so
            assert (page.texts[-1]["engine"], page.texts[-1]["source"]) == ("auto", "page")
            page.session.give(PictureMessage(2, 0.0, b"not a JPEG"))
            page.session.give(PictureMessage(3, 0.0, shown(label_maps(1)[0])))
            page.until(lambda: page.last("error")["message"] == "")  # it is over
            page.session.tell(Source("clip"))
            page.until(lambda: len(page.frames) > 3)
        assert not any(text.get("final") for text in page.texts)

    def test_a_source_that_cannot_be_opened_or_is_empty_leaves_the_page_as_source(self, folder):
        def broken():
            raise MediaError("camera 0 cannot be opened")

        bundle = LiveBundle(folder, {"camera": broken, "nothing": lambda: iter(())}, None, opener=fake_opener)
        for name, message in (("camera", "camera 0 cannot be opened"), ("nothing", "'nothing' is empty")):
            with Page(bundle) as page:
                page.session.tell(Source(name))
                page.until(lambda p=page: p.last("error") is not None and p.texts[-1]["type"] == "state")
                assert message in page.last("error")["message"]
                assert page.last("state")["source"] == "page"

    def test_an_engine_that_fails_is_told(self, folder):
        broken = LiveBundle(folder, {"clip": lambda: iter([ConditionMap(labels=label_maps(1)[0])])}, None,
                            opener=partial(fake_opener, fail_at=1))  # fmt: skip
        with Page(broken) as page:
            page.session.tell(Source("clip"))
            page.until(lambda: page.last("error") is not None)
        assert "out of coffee" in page.last("error")["message"]

    def test_the_engine_is_opened_again_only_where_it_changes(self, folder):
        opened = []
        clip = {"clip": lambda: iter([ConditionMap(labels=x) for x in label_maps(6)])}
        bundle = LiveBundle(folder, clip, None, opener=partial(fake_opener, made=opened), config=LiveConfig(threads=1))
        with Page(bundle) as page:
            page.session.tell(Settings(gap=3))
            page.session.tell(Settings(engine=bundle.engines[1]))
            page.until(lambda: (page.last("state") or {}).get("engine") == bundle.engines[1])
        assert len(opened) == 2


@pytest.fixture
def client(bundle):
    return make_client(bundle)


def make_client(bundle, token=None, origin=None, **limits):
    from starlette.testclient import TestClient

    from export.live.server import LiveServer, ServerConfig

    server = LiveServer(bundle, ServerConfig(**limits), token)
    made = TestClient(server.app(), base_url="http://localhost:8000")
    made.server = server
    return made


def greeted(socket, **content):
    socket.send_text(json.dumps({"type": "hello", **content}))
    return json.loads(socket.receive_text())


def frames_from(socket, count):
    """The next frames, whatever text comes between."""
    found = []
    while len(found) < count:
        message = socket.receive()
        assert message["type"] == "websocket.send", message
        if message.get("bytes"):
            found.append(unpack_frame(message["bytes"]))
    return found


def closing(socket):
    """Code and last sentence of a connection that the server ends."""
    said = None
    for _ in range(1000):
        message = socket.receive()
        if message["type"] == "websocket.close":
            return message["code"], said
        said = json.loads(message["text"])["message"] if message.get("text") and "message" in message["text"] else said
    raise AssertionError("the server did not end it")


@needs_server
class TestServer:
    def test_the_page_and_nothing_else(self, client):
        page = client.get("/")
        assert page.status_code == 200
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        for name in ("live.js", "live.css", "icon.svg"):
            assert f"/{name}" in page.text
            assert client.get(f"/{name}").status_code == 200
        assert "style=" not in page.text
        assert SYNTHETIC_COMMENT in client.get("/live.js").text
        for path in ("/docs", "/openapi.json", "/../setup.py", "/static/live.js"):
            assert client.get(path).status_code == 404
        assert client.post("/").status_code == 405

    def test_a_stream(self, client):
        with client.websocket_connect("ws://localhost:8000/stream") as socket:
            hello = greeted(socket)
            assert (hello["size"], hello["sources"], hello["pictures"]) == (list(SIZE), ["clip"], True)
            assert hello["classes"][1] == {"name": "car", "color": list(PALETTE[1])}
            socket.send_text('{"type": "source", "name": "clip"}')
            frames = frames_from(socket, 9)
        assert [frame.index for frame in frames] == list(range(9))
        assert frames[4].is_keyframe

    @pytest.mark.parametrize(
        ("headers", "passes"),
        [
            ({"origin": "http://localhost:8000"}, True),
            ({}, True),
            ({"origin": "http://evil.example"}, False),
            ({"origin": "null"}, False),
            ({"origin": "http://localhost:9000"}, False),
            ({"host": "evil.example"}, False),
            ({"host": "evil.example", "origin": "http://evil.example"}, False),
            ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, True),
            ({"host": "[::1"}, False),
        ],
    )
    def test_who_may_connect(self, client, headers, passes):
        from starlette.websockets import WebSocketDisconnect

        if passes:
            with client.websocket_connect("ws://localhost:8000/stream", headers=headers) as socket:
                assert greeted(socket)["type"] == "hello"
        else:
            with (
                pytest.raises(WebSocketDisconnect),
                client.websocket_connect("ws://localhost:8000/stream", headers=headers),
            ):
                pass
        if "host" in headers and not passes:
            assert client.get("/", headers=headers).status_code == 403

    def test_others_need_the_token(self, bundle):
        with pytest.raises(ConfigError, match="needs a token"):
            make_client(bundle, host="0.0.0.0")
        client = make_client(bundle, token="secret", host="0.0.0.0")
        for wrong in ({}, {"token": "Secret"}, {"token": "sécret"}):
            with client.websocket_connect("ws://localhost:8000/stream") as socket:
                socket.send_text(json.dumps({"type": "hello", **wrong}))
                code, said = closing(socket)
                assert code == 1008
                assert "token is wrong" in said
        with client.websocket_connect("ws://localhost:8000/stream") as socket:
            assert greeted(socket, token="secret")["type"] == "hello"

    @pytest.mark.parametrize("first", ['{"type": "source", "name": "clip"}', "hi", "[" * 20_000, b"\x01\x01"])
    def test_hello_comes_first(self, client, first):
        with client.websocket_connect("ws://localhost:8000/stream") as socket:
            socket.send_bytes(first) if isinstance(first, bytes) else socket.send_text(first)
            assert closing(socket) == (1008, "the first message must be hello")

    def test_silence_is_ended(self, bundle):
        with make_client(bundle, hello_timeout_s=0.05).websocket_connect("ws://localhost:8000/stream") as socket:
            assert closing(socket)[0] == 1008

    @pytest.mark.parametrize(
        ("message", "code", "sentence"),
        [
            (b"x" * 5000, 1009, "at most 4096 bytes"),
            (b"rubbish", 1008, "a picture message has more than 16 bytes"),
            (b"\x07" * 40, 1008, "expected a picture of protocol 1"),
            ("{}", 1008, "whose type is one of"),
            ('{"type": "stroke", "label": 0, "size": 3, "points": [[NaN, 1]]}', 1008, "x is a number"),
        ],
    )
    def test_malformed_messages_end_their_connection_only(self, bundle, message, code, sentence):
        client = make_client(bundle, max_message_bytes=4096)
        with client.websocket_connect("ws://localhost:8000/stream") as good:
            greeted(good)
            good.send_text('{"type": "source", "name": "clip"}')
            with client.websocket_connect("ws://localhost:8000/stream") as bad:
                greeted(bad)
                bad.send_bytes(message) if isinstance(message, bytes) else bad.send_text(message)
                found = closing(bad)
                assert found[0] == code
                assert sentence in found[1]
            assert len(frames_from(good, 8)) == 8

    def test_floods_are_ended(self, bundle):
        client = make_client(bundle, messages_per_s=1)
        with client.websocket_connect("ws://localhost:8000/stream") as socket:
            greeted(socket)
            for _ in range(60):
                socket.send_text('{"type": "undo"}')
            code, said = closing(socket)
        assert code == 1008
        assert "too much was sent" in said

    def test_a_full_server_says_so_and_has_room_again(self, bundle):
        client = make_client(bundle, max_clients=1)
        with client.websocket_connect("ws://localhost:8000/stream") as good:
            greeted(good)
            good.send_text('{"type": "source", "name": "clip"}')
            frames_from(good, 3)
            for _ in range(20):
                with client.websocket_connect("ws://localhost:8000/stream") as late:
                    late.send_text('{"type": "hello"}')
                    code, said = closing(late)
                    assert code == 1013
                    assert "1 streams already" in said
            assert len(frames_from(good, 8)) == 8
        for _ in range(5):  # who comes again finds room as soon as the last one has gone
            end = time.monotonic() + 10
            while client.server.num_clients:
                assert time.monotonic() < end
                time.sleep(0.01)
            with client.websocket_connect("ws://localhost:8000/stream") as again:
                assert greeted(again)["type"] == "hello"

    def test_limits_that_make_no_sense(self):
        from export.live.server import ServerConfig

        for wrong in ({"port": 70_000}, {"max_clients": 0}, {"messages_per_s": 0.0}, {"max_message_bytes": 10}):
            with pytest.raises(ConfigError):
                ServerConfig(**wrong)


@needs_server
class TestParts:
    def test_an_outbox_keeps_the_newest_frames(self):
        import asyncio

        from export.live.server import Outbox

        async def run():
            outbox = Outbox(asyncio.get_running_loop(), 3)
            for number in range(10):
                outbox.put(bytes([number]))
            outbox.put("text")
            return outbox.dropped, [await outbox.get() for _ in range(4)]

        assert asyncio.run(run()) == (7, ["text", b"\x07", b"\x08", b"\x09"])

    def test_an_allowance_refills(self, monkeypatch):
        from export.live import server

        now = [100.0]
        monkeypatch.setattr(server.time, "monotonic", lambda: now[0])
        allowance = server.Allowance(10)
        assert [allowance.take(1) for _ in range(21)] == [True] * 20 + [False]
        now[0] += 0.5
        assert [allowance.take(1) for _ in range(6)] == [True] * 5 + [False]
        now[0] += 1000
        assert not allowance.take(21)
        assert allowance.take(20)


@pytest.fixture
def web(bundle):
    """A server on a port of its own, with little patience."""
    import socket
    import threading

    from export.live.server import LiveServer, ServerConfig
    from export.live.web import web_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = ServerConfig(port=port, hello_timeout_s=0.3, send_timeout_s=0.3, max_connections=2)
    running = web_server(LiveServer(bundle, config).app(), config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not running.started:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield running
    running.should_exit = True
    thread.join(20)


def dialled(web):
    import socket

    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(10)
    made.connect(("127.0.0.1", web.config.port))
    return made


def upgraded(web):
    """A WebSocket by hand, to do with it what no library would."""
    made = dialled(web)
    made.sendall(
        f"GET /stream HTTP/1.1\r\nHost: localhost:{web.config.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert b"101" in made.recv(20)
    return made


def framed(opcode, data):
    """One WebSocket frame with a mask of zeros."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
    return bytes([opcode]) + size + bytes(4) + data


def ends(connection, seconds=10.0):
    """Read a connection to its end."""
    end = time.monotonic() + seconds
    try:
        while connection.recv(65536):
            assert time.monotonic() < end
    except ConnectionError:
        pass


@needs_server
class TestWeb:
    @pytest.mark.parametrize("said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET"])
    def test_requests_that_never_end_are_not_waited_for(self, web, said):
        with dialled(web) as stalled:
            stalled.sendall(said)
            ends(stalled)

    def test_a_page_is_served_and_streams(self, web):
        from urllib.request import urlopen

        with urlopen(f"http://localhost:{web.config.port}/", timeout=10) as page:
            assert b"fastv2v live" in page.read()
        with upgraded(web) as good:
            good.sendall(framed(0x81, b'{"type": "hello"}') + framed(0x81, b'{"type": "source", "name": "clip"}'))
            time.sleep(1.0)  # more than the patience with requests
            seen = b""
            while seen.count(b"\xff\xd8\xff") < 4:
                seen += good.recv(65536)

    @pytest.mark.parametrize("frame", [framed(0x89, b"hi"), framed(0x8A, b"hi"), framed(0x00, b"")])
    def test_floods_that_the_application_never_sees_are_ended(self, web, frame):
        begin = framed(0x01, b"x") if frame[0] == 0 else b""
        with upgraded(web) as hostile:
            hostile.sendall(framed(0x81, b'{"type": "hello"}') + begin)
            with pytest.raises(ConnectionError):
                for _ in range(2000):
                    hostile.sendall(100 * frame)
                    time.sleep(0.001)

    def test_who_takes_nothing_is_forgotten(self, web, monkeypatch):
        from export.live import web as module

        monkeypatch.setattr(module, "_LINGER_S", 0.1)
        monkeypatch.setattr("export.live.session._jpeg", lambda picture, quality: bytes(300_000))
        with upgraded(web) as stalled:
            stalled.sendall(framed(0x81, b'{"type": "hello"}') + framed(0x81, b'{"type": "source", "name": "clip"}'))
            end = time.monotonic() + 30
            while web.server_state.connections:
                assert time.monotonic() < end
                time.sleep(0.05)
