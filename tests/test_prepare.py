"""From a plain video to a data set: what is found in it, what is cut, drawn and written."""

import json
import wave
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest
from shared_data import shared

from benchmarks.detection import face_distances
from fastv2v.cli import main
from fastv2v.data.classes import read_classes
from fastv2v.data.face import CropBox
from fastv2v.data.folder import FolderConfig, FrameReader, open_folder
from fastv2v.data.images import read_image, read_label
from fastv2v.data.prepare import landmarks
from fastv2v.data.prepare.chunks import Piece, cut_into_pieces, work_through
from fastv2v.data.prepare.edges import EdgeConfig, draw_edges
from fastv2v.data.prepare.palette import PaletteConfig, draw_palette, features_of, fit_palette
from fastv2v.data.prepare.steady import without_specks
from fastv2v.data.prepare.survey import Excerpt, Survey, read_frames, survey_video
from fastv2v.data.prepare.write import Fit, PrepareConfig, prepare_video
from fastv2v.errors import ConfigError, DataError, MediaError, MissingExtraError
from fastv2v.video import frame_times, write_video


def quiet(stage, done, total):
    pass


def scene(seed, num_frames=16, size=(64, 96)):
    """A bright disc on a patterned ground, moving a pixel a frame."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(60, 160, (8, 12, 3), dtype=np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    colour = tuple(int(v) for v in rng.integers(180, 255, 3))
    frames = []
    for index in range(num_frames):
        frame = ground.copy()
        cv2.circle(frame, (30 + index, 32), 14, colour, -1)
        frames.append(frame)
    return frames


def video_of(tmp_path, frames, name="clip.mkv", fps=25):
    path = tmp_path / name
    write_video(path, frames, fps, lossless=True, synthetic=False)
    return path


class TestSurvey:
    def test_a_plain_video_is_one_shot_without_bars(self, tmp_path):
        survey = survey_video(video_of(tmp_path, scene(1)), Excerpt(), quiet)
        assert survey.shots() == [(0, 16)]
        assert survey.picture == CropBox(0, 0, 96, 64)
        assert (survey.fps, survey.resampled, survey.repeats, survey.damage) == (Fraction(25), False, (), None)

    def test_black_bars_are_found_and_cut_off(self, tmp_path):
        boxed = [np.pad(frame, ((10, 12), (0, 0), (0, 0))) for frame in scene(1)]
        path = video_of(tmp_path, boxed)
        survey = survey_video(path, Excerpt(), quiet)
        left, top, right, bottom = survey.picture
        assert (left, right) == (0, 96)
        assert 10 <= top <= 13 and 71 <= bottom <= 74
        assert next(read_frames(path, Excerpt(), survey)).shape == (bottom - top, 96, 3)
        assert next(read_frames(path, Excerpt(), survey, crop_bars=False)).shape == (86, 96, 3)

    def test_a_dark_video_is_not_cut(self, tmp_path):
        survey = survey_video(
            video_of(tmp_path, [np.full((32, 32, 3), v, np.uint8) for v in (3, 4, 5)]), Excerpt(), quiet
        )
        assert survey.picture == CropBox(0, 0, 32, 32)

    def test_cuts_divide_it_into_shots(self, tmp_path):
        frames = scene(1) + [255 - frame for frame in scene(2)] + scene(3)
        assert survey_video(video_of(tmp_path, frames), Excerpt(), quiet).cuts == (16, 32)

    def test_repeated_frames_are_found(self, tmp_path):
        frames = scene(1)
        frames[5] = frames[4]
        frames[9] = frames[8]
        assert survey_video(video_of(tmp_path, frames), Excerpt(), quiet).repeats == (5, 9)

    def test_an_excerpt_starts_and_stops_in_time(self, tmp_path):
        path = video_of(tmp_path, scene(1, 30), fps=10)
        excerpt = Excerpt(start=1.0, stop=2.0)
        survey = survey_video(path, excerpt, quiet)
        assert survey.num_frames == 10
        assert np.array_equal(next(read_frames(path, excerpt, survey)), scene(1, 30)[10])

    def test_a_rate_is_reached_by_whole_frames(self, tmp_path):
        path = video_of(tmp_path, scene(1, 20), fps=20)
        survey = survey_video(path, Excerpt(fps=10), quiet)
        assert (survey.num_frames, survey.fps, survey.resampled) == (10, Fraction(10), True)

    def test_times_of_frames_are_those_of_the_container(self, tmp_path):
        assert np.allclose(frame_times(video_of(tmp_path, scene(1), fps=25)), np.arange(16) / 25, atol=1e-3)

    def test_it_survives_json(self, tmp_path):
        survey = survey_video(video_of(tmp_path, scene(1)), Excerpt(), quiet)
        assert Survey.from_json(json.loads(json.dumps(survey.to_json()))) == survey

    def test_a_video_that_breaks_off_is_taken_as_far_as_it_goes(self, tmp_path):
        rng = np.random.default_rng(0)
        frames = [rng.integers(0, 255, (64, 96, 3), dtype=np.uint8) for _ in range(30)]
        path = video_of(tmp_path, frames)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        survey = survey_video(path, Excerpt(), quiet)
        assert 2 <= survey.num_frames < 30
        assert survey.damage
        read = list(read_frames(path, Excerpt(), survey))
        assert all(np.array_equal(a, b) for a, b in zip(read, frames, strict=False))

    def test_one_frame_is_no_video(self, tmp_path):
        with pytest.raises(MediaError, match="holds 1 frame; a sequence needs at least two"):
            survey_video(video_of(tmp_path, scene(1, 1)), Excerpt(), quiet)

    def test_an_empty_file_is_refused(self, tmp_path):
        (tmp_path / "empty.mp4").touch()
        with pytest.raises(MediaError, match="empty"):
            survey_video(tmp_path / "empty.mp4", Excerpt(), quiet)

    def test_sound_alone_is_refused(self, tmp_path):
        with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
            file.writeframes(bytes(16000))
        with pytest.raises(MediaError, match="no picture stream"):
            survey_video(tmp_path / "sound.wav", Excerpt(), quiet)

    def test_an_excerpt_that_ends_before_it_starts_is_refused(self):
        with pytest.raises(ConfigError, match="stops after that"):
            Excerpt(start=3, stop=2)


def take_mean(frames):
    return {"mean": np.array([frame.mean() for frame in frames])}


def give_up(frames):
    raise RuntimeError("stopped")


class TestPieces:
    def test_they_stay_within_their_run_and_bring_a_lead(self):
        pieces = cut_into_pieces([range(5), range(5, 8)], 3, lead=2)
        assert [(p.frames, p.lead) for p in pieces] == [((0, 1, 2), ()), ((3, 4), (1, 2)), ((5, 6, 7), ())]

    def test_what_is_done_is_not_done_again(self, tmp_path):
        frames = [np.full((2, 2, 3), value, np.uint8) for value in range(8)]
        pieces = cut_into_pieces([range(8)], 3, lead=1)
        with ThreadPoolExecutor(1) as executor:

            def go(work):
                return work_through("mean", pieces, iter(frames), work, tmp_path, executor, 1, quiet)

            with pytest.raises(RuntimeError, match="stopped"):
                go(lambda piece: take_mean if piece is pieces[0] else give_up)
            asked = []
            found = go(lambda piece: asked.append(piece) or take_mean)
            assert asked == [*pieces[1:]]
            assert [found[piece.name]["mean"].tolist() for piece in pieces] == [[0, 1, 2], [2, 3, 4, 5], [5, 6, 7]]
            again = go(lambda piece: give_up)
        assert all(np.array_equal(again[name]["mean"], found[name]["mean"]) for name in found)


class TestMaps:
    def test_specks_go_to_their_neighbours(self):
        labels = np.zeros((20, 20), np.uint8)
        labels[:, 10:] = 3
        cleaned = labels.copy()
        cleaned[4, 4] = 3
        cleaned[15, 15:17] = 1
        assert np.array_equal(without_specks(cleaned, 5), labels)

    def test_a_palette_finds_the_colours_of_a_video(self):
        frames = scene(4)
        half = [frame.copy() for frame in frames]
        for frame in half:
            frame[:, :48], frame[:, 48:] = (200, 30, 30), (20, 40, 180)
        features = np.concatenate([features_of(frame).reshape(-1, 4) for frame in half])
        colours = np.concatenate([frame.reshape(-1, 3) for frame in half])
        config = PaletteConfig(classes=2)
        palette = fit_palette(features, colours, config)
        assert np.abs(palette.colours.astype(int) - [(20, 40, 180), (200, 30, 30)]).max() < 12
        labels = next(draw_palette(half, palette, config))
        assert (labels[:, :40] == 1).all() and (labels[:, 56:] == 0).all()

    def test_holding_keeps_a_palette_from_flickering(self):
        rng = np.random.default_rng(0)
        clean = scene(5)
        noisy = [np.clip(frame + rng.normal(0, 12, frame.shape), 0, 255).astype(np.uint8) for frame in clean]
        features = np.concatenate([features_of(frame).reshape(-1, 4) for frame in noisy])
        colours = np.concatenate([frame.reshape(-1, 3) for frame in noisy])

        def flips(hold):
            config = PaletteConfig(classes=8, hold=hold)
            maps = list(draw_palette(noisy, fit_palette(features, colours, config), config))
            return np.mean([a != b for a, b in pairwise(maps)])

        assert flips(1.0) < 0.8 * flips(0.0)

    def test_one_colour_makes_no_palette(self):
        with pytest.raises(DataError, match="looks alike"):
            fit_palette(np.ones((50, 4), np.float32), np.ones((50, 3), np.uint8), PaletteConfig())

    def test_edges_lie_where_brightness_changes(self):
        frame = np.zeros((40, 40, 3), np.uint8)
        frame[:, 20:] = 200
        first, second = draw_edges([frame, frame], EdgeConfig())
        assert set(np.flatnonzero(first[20])) <= {19, 20}
        assert np.array_equal(first, second)

    def test_holding_keeps_edges_from_flickering(self):
        rng = np.random.default_rng(0)
        noisy = [np.clip(f + rng.normal(0, 12, f.shape), 0, 255).astype(np.uint8) for f in [scene(5)[0]] * 8]

        def flips(hold):
            maps = list(draw_edges(noisy, EdgeConfig(hold=hold)))
            return np.mean([a != b for a, b in pairwise(maps)]) / np.mean([a > 0 for a in maps])

        assert flips(True) < 0.7 * flips(False)


class TestFit:
    @pytest.mark.parametrize(
        ("source", "side", "size"),
        [((540, 960), 192, (192, 336)), ((480, 640), None, (480, 640)), ((100, 50), 512, (96, 48))],
    )
    def test_sides_become_multiples_and_frames_never_grow(self, source, side, size):
        fit = Fit.of(source, side, 16)
        assert fit.size == size
        assert fit(np.zeros((*source, 3), np.uint8)).shape == (*size, 3)

    def test_the_cut_is_even_on_both_sides(self):
        frame = np.arange(20, dtype=np.uint8)[None, :, None].repeat(16, 0).repeat(3, 2)
        assert Fit.of((16, 20), None, 16)(frame)[0, :, 0].tolist() == list(range(2, 18))

    def test_frames_smaller_than_a_multiple_are_refused(self):
        with pytest.raises(DataError, match="too small"):
            Fit.of((8, 40), None, 16)


def face_at(x, y, width=40.0):
    """68 points within a box of this width."""
    points = np.random.default_rng(3).random((68, 2)) * width
    points[0], points[16] = (0, 0), (width, width)
    return points + np.array([x, y])


class TestFaces:
    def test_one_person_is_followed_past_a_larger_face(self):
        small, large = face_at(10, 10), face_at(200, 20, 80)
        found = [np.stack([small]), np.stack([large, small + 2]), np.stack([large])]
        followed = landmarks.follow_one(found, "largest")
        assert np.array_equal(followed[0], small) and np.array_equal(followed[1], small + 2) and followed[2] is None

    def test_the_choice_decides_between_several(self):
        left, right = face_at(10, 10, 30), face_at(200, 20, 80)
        both = [np.stack([left, right])]
        assert np.array_equal(landmarks.follow_one(both, "largest")[0], right)
        assert np.array_equal(landmarks.follow_one(both, "leftmost")[0], left)

    def test_a_face_that_leaves_and_comes_back_goes_on(self):
        small, large = face_at(10, 10), face_at(200, 20, 80)
        found = [np.stack([small]), np.empty((0, 68, 2)), np.stack([large, small + 3]), np.stack([large, small])]
        followed = landmarks.follow_one(found, "largest")
        assert followed[1] is None
        assert np.array_equal(followed[2], small + 3) and np.array_equal(followed[3], small)

    def test_where_it_stays_away_the_next_one_is_chosen(self):
        small, large = face_at(10, 10), face_at(200, 20, 80)
        found = [np.stack([small]), np.stack([large]), np.stack([large])]
        followed = landmarks.follow_one(found, "largest")
        assert followed[1] is None and np.array_equal(followed[2], large)

    def test_a_face_that_leaves_divides_the_sequence(self, tmp_path, monkeypatch):
        """Twenty frames with a face, five without, eight with one again, which are too few."""
        path = video_of(tmp_path, scene(1, 33))

        def look(piece, frames, config):
            counts = np.array([not 20 <= number < 25 for number in piece.frames], np.int64)
            faces = [face_at(20 + 0.1 * number, 12)[None] for number in piece.frames if not 20 <= number < 25]
            return {"faces": np.concatenate(faces), "counts": counts}

        monkeypatch.setattr(landmarks, "check_installed", lambda: None)
        monkeypatch.setattr(landmarks, "look_for_faces", look)
        monkeypatch.setattr("fastv2v.data.prepare.write.process_pool", ThreadPoolExecutor)
        summary = prepare_video(path, tmp_path / "out", PrepareConfig(kind="face", holdout=0), num_workers=1)
        assert summary["lost"] == {"without a face": 5, "in sequences of fewer than 12 frames": 8}
        assert summary["sequences"] == {"shot_000": {"frames": 20, "first": 0, "last": 19}}

    def test_smoothing_keeps_what_stands_still_and_its_ends(self):
        track = np.broadcast_to(face_at(0, 0), (9, 68, 2))
        assert np.allclose(landmarks.smooth_track(track, 2.0), track)

    def test_a_head_that_stays_gets_one_box(self):
        track = np.stack([face_at(100 + x, 80) for x in (0, 3, 1, 2)])
        boxes = landmarks.head_crops(track, (240, 320), 25.0)
        assert len(set(boxes)) == 1
        assert boxes[0].right - boxes[0].left == boxes[0].bottom - boxes[0].top == 100
        assert boxes[0].left <= 100 and boxes[0].right >= 143

    def test_a_head_that_moves_is_followed_without_jumps(self):
        track = np.stack([face_at(60 + 4 * i, 80) for i in range(40)])
        boxes = landmarks.head_crops(track, (240, 320), 25.0)
        steps = np.diff([box.left for box in boxes])
        assert steps.min() >= 0 and steps.max() <= 5
        assert {box.right - box.left for box in boxes} == {100}
        assert all(box.left >= 0 and box.right <= 320 for box in boxes)

    def test_a_crop_beyond_the_border_is_mirrored_there(self):
        image = np.arange(12, dtype=np.uint8).reshape(1, 4, 3).repeat(3, 0)
        cropped = landmarks.crop_mirrored(image, CropBox(-1, 0, 4, 3))
        assert np.array_equal(cropped[:, 0], image[:, 1]) and np.array_equal(cropped[:, 1:], image)

    def test_without_dlib_the_extra_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        landmarks._networks.cache_clear()
        with pytest.raises(MissingExtraError, match=r"fastv2v\[face\]"):
            prepare_video(tmp_path / "any.mp4", tmp_path / "out", PrepareConfig(kind="face"))
        landmarks._networks.cache_clear()


class TestPrepare:
    def test_a_palette_is_a_label_data_set(self, tmp_path):
        out = tmp_path / "out"
        summary = prepare_video(
            video_of(tmp_path, scene(1, 20)),
            out,
            PrepareConfig(kind="palette", palette=PaletteConfig(classes=5)),
            num_workers=1,
        )
        assert (summary["kept"], summary["train"], summary["test"]) == (20, 16, 4)
        train, test = (open_folder(FolderConfig(root=out, phase=phase)) for phase in ("train", "test"))
        assert (train.lengths, test.lengths) == ((16,), (4,))
        assert train.spec.num_classes == len(read_classes(out).names) == 5
        assert read_label(train.sequences[0].path("labels", 0)).max() < 5
        assert np.array_equal(read_image(test.sequences[0].path("frames", 0)), scene(1, 20)[16])
        assert not (tmp_path / ".out.partial").exists()

    def test_two_workers_make_the_same_files_as_one(self, tmp_path):
        path = video_of(tmp_path, scene(1, 40))
        folders = [tmp_path / "one", tmp_path / "two"]
        for folder, workers in zip(folders, (1, 2), strict=True):
            prepare_video(path, folder, PrepareConfig(kind="edges"), num_workers=workers)
        one, two = ({f.relative_to(r): f.read_bytes() for f in r.rglob("*.png")} for r in folders)
        assert one == two and len(one) == 80

    def test_edges_are_read_as_colour_images(self, tmp_path):
        out = tmp_path / "out"
        frames = scene(1, 15) + [255 - frame for frame in scene(2, 14)] + scene(3, 5)
        summary = prepare_video(video_of(tmp_path, frames), out, PrepareConfig(kind="edges", size=32), num_workers=1)
        assert summary["lost"] == {"in sequences of fewer than 12 frames": 5}
        folder = open_folder(FolderConfig(root=out, condition="rgb"))
        assert [sequence.name for sequence in folder.sequences] == ["shot_000", "shot_001"]
        assert FrameReader(folder, cache_mb=0).image_size(0) == (32, 48)

    def test_the_same_request_is_answered_by_what_is_there(self, tmp_path):
        path, out = video_of(tmp_path, scene(1)), tmp_path / "out"
        first = prepare_video(path, out, PrepareConfig(kind="edges"), num_workers=1)
        stamp = (out / "summary.json").stat().st_mtime_ns
        assert prepare_video(path, out, PrepareConfig(kind="edges"), num_workers=1) == first
        assert (out / "summary.json").stat().st_mtime_ns == stamp
        with pytest.raises(DataError, match="--overwrite"):
            prepare_video(path, out, PrepareConfig(kind="edges", size=32), num_workers=1)
        other = prepare_video(path, out, PrepareConfig(kind="edges", size=32), num_workers=1, overwrite=True)
        assert other["size"] == [32, 48]

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/letter.txt").write_text("dear")
        with pytest.raises(DataError, match="not prepared from a video"):
            prepare_video(video_of(tmp_path, scene(1)), tmp_path / "out", PrepareConfig(kind="edges"), overwrite=True)

    def test_repeats_are_left_out_on_request(self, tmp_path):
        frames = scene(1, 15)
        frames[5] = frames[4]
        config = PrepareConfig(kind="edges", drop_repeats=True, holdout=0)
        summary = prepare_video(video_of(tmp_path, frames), tmp_path / "out", config, num_workers=1)
        assert (summary["kept"], summary["lost"]) == (14, {"repeats of the frame before": 1})

    def test_the_command_ends_with_one_line_of_json_and_a_sheet(self, tmp_path, capsys):
        path, out = video_of(tmp_path, scene(1)), tmp_path / "out"
        assert main(["prepare", str(path), "--kind", "palette", "--out", str(out), "--num-workers", "1"]) == 0
        answer = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert answer["kept"] == 16
        assert read_image(out / "sheet.png").size

    @pytest.mark.parametrize(
        "settings", [{"size": 100}, {"holdout": 1.0}, {"shortest": 1}, {"kind": "mask"}, {"multiple": 0}]
    )
    def test_nonsense_is_refused(self, settings):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            PrepareConfig(**{"kind": "edges"} | settings)


class TestRealFaces:
    """What was asked for, on footage beside the repository."""

    def test_landmarks_are_those_of_the_example_data(self):
        pytest.importorskip("dlib", reason="needs the extra 'face'")
        folder = open_folder(FolderConfig(root=shared("face_vid2vid"), condition="face"))
        for sequence in folder.sequences:
            distances = face_distances(sequence.take(0, 8), landmarks.FaceConfig())
            assert None not in distances and np.mean(distances) < 1.2

    def test_a_video_without_a_face_is_refused(self, tmp_path):
        pytest.importorskip("dlib", reason="needs the extra 'face'")
        with pytest.raises(DataError, match="no face was found in any of 16 frames"):
            prepare_video(video_of(tmp_path, scene(1)), tmp_path / "out", PrepareConfig(kind="face"), num_workers=1)


def test_a_piece_without_lead_has_none():
    assert Piece("a", (1,)).lead == ()
