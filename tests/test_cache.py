"""Precomputed teachers: what is written, what is read back, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from distill.cache import (
    MANIFEST,
    Span,
    TaughtFrames,
    TaughtRecord,
    TaughtSequence,
    TaughtWriter,
    check_geometry,
    rollout_spans,
    weights_sha256,
)
from distill.teacher import LiveTeacher, TeacherSource
from fastv2v.architecture import Architecture, architecture_dict, load_trained
from fastv2v.checkpoint import save_checkpoint
from fastv2v.cli import main
from fastv2v.commands.precompute import Precompute, teacher_outputs
from fastv2v.contracts import FrameOutput
from fastv2v.data.clip import Clip, ClipInfo
from fastv2v.data.conditions import ConditionSpec
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.loader import collate_clips, read_clip
from fastv2v.data.transforms import Geometry, GeometryConfig
from fastv2v.device import DeviceConfig, open_device
from fastv2v.errors import ConfigError, DataError
from fastv2v.nn.composite import CompositeConfig
from fastv2v.nn.features import FeatureConfig
from fastv2v.ops.labels import encode_clip
from fastv2v.recipe import UNSET_ROOT
from fastv2v.render import advance
from fastv2v.score import to_uint8

SIZE = (16, 32)
EXACT = GeometryConfig(mode="exact", size=SIZE, interpolation="area")
SPEC = ConditionSpec(class_names=("class_0", "class_1"))
READ = FolderConfig(root=UNSET_ROOT, num_classes=2, geometry=EXACT)
TINY = CompositeConfig(width=4, num_downsamples=2, num_blocks=2)
STEMS = tuple(f"{t:03d}" for t in range(6))
RECORD = TaughtRecord(
    teacher=Path("run/step-1"),
    weights_sha256="0" * 64,
    data=Path("data"),
    condition=SPEC,
    geometry=EXACT,
    history_length=2,
    window=0,
    has_flow=True,
    sequences=(TaughtSequence(name="a", stems=STEMS), TaughtSequence(name="b/c", stems=STEMS[:4])),
)


def outputs(num: int, seed: int = 0) -> list[FrameOutput]:
    """What a teacher might say: frames of exact 8-bit values, flow of exact half-precision values."""
    rng = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(num):
        frame = torch.randint(0, 256, (1, 3, *SIZE), generator=rng) / 127.5 - 1
        flow = torch.randint(-64, 64, (1, 2, *SIZE), generator=rng) / 8
        made.append(FrameOutput(frame, frame, frame, flow, frame[:, :1]))
    return made


def write(folder: Path, record: TaughtRecord = RECORD, **options: bool) -> Path:
    writer = TaughtWriter(folder, record, **options)
    for number in range(writer.num_done, len(record.sequences)):
        writer.add(outputs(len(record.sequences[number].stems) - record.history_length, number))
    writer.finish()
    return folder


def clip_of(sequence: str, *indices: int, flipped: bool = False, size: tuple[int, int] = SIZE) -> Clip:
    info = ClipInfo(sequence, indices, tuple(f"{i:03d}" for i in indices), flipped)
    return Clip(frames=torch.zeros(1, len(indices), 3, *size), info=(info,))


def teach(source: TeacherSource, clip: Clip):
    return source.teach(clip, torch.zeros(()), "full")


class TestSpans:
    @pytest.mark.parametrize(
        ("num_frames", "past", "window", "expected"),
        [
            (10, 2, 0, [(0, 2, 10)]),
            (10, 2, 3, [(0, 2, 5), (1, 5, 8), (4, 8, 10)]),
            (7, 1, 4, [(0, 1, 5), (3, 5, 7)]),
            (8, 3, 2, [(0, 3, 5), (0, 5, 7), (1, 7, 8)]),
            (2, 2, 3, []),
        ],
    )
    def test_by_hand(self, num_frames, past, window, expected):
        assert rollout_spans(num_frames, past, window) == [Span(*span) for span in expected]

    @given(st.integers(0, 60), st.integers(1, 5), st.integers(0, 20))
    def test_every_frame_is_kept_once_with_as_much_history_as_there_is(self, num_frames, past, window):
        spans = rollout_spans(num_frames, past, window)
        assert [t for span in spans for t in range(span.first, span.stop)] == list(range(past, num_frames))
        for span in spans:
            assert span.start >= 0
            assert span.first - span.start == min(2 * past, span.first)  # given, then own frames


class TestReading:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return write(tmp_path_factory.mktemp("cache") / "taught")

    def test_frames_and_flow_come_back(self, folder):
        made = outputs(4)
        taught = teach(TaughtFrames(folder, flow=True), clip_of("a", 0, 1, 2, 3, 4, 5))
        assert_close(taught.frame, torch.stack([output.frame for output in made], 1), rtol=0, atol=1e-6)
        assert torch.equal(taught.flow, torch.stack([output.flow for output in made], 1))
        assert taught.features is None

    def test_entry_k_belongs_to_clip_frame_k_plus_history(self, folder):
        taught = teach(TaughtFrames(folder), clip_of("a", 1, 2, 3, 4))
        assert_close(taught.frame, torch.stack([output.frame for output in outputs(4)[1:3]], 1))

    def test_frames_further_apart_are_found_without_flow(self, folder):
        taught = teach(TaughtFrames(folder), clip_of("a", 1, 3, 5))
        assert_close(taught.frame[:, 0], outputs(4)[3].frame)
        with pytest.raises(DataError, match="max-step 1"):
            teach(TaughtFrames(folder, flow=True), clip_of("a", 1, 3, 5))

    def test_a_mirrored_clip_is_taught_mirrored(self, folder):
        source = TaughtFrames(folder, flow=True)
        plain, mirrored = (teach(source, clip_of("b/c", 0, 1, 2, 3, flipped=flipped)) for flipped in (False, True))
        assert torch.equal(mirrored.frame, plain.frame.flip(-1))
        assert torch.equal(mirrored.flow[:, :, 0], -plain.flow[:, :, 0].flip(-1))
        assert torch.equal(mirrored.flow[:, :, 1], plain.flow[:, :, 1].flip(-1))

    def test_a_batch_holds_each_clip(self, folder):
        source = TaughtFrames(folder, flow=True)
        clips = [clip_of("a", 0, 1, 2, 3), clip_of("b/c", 0, 1, 2, 3, flipped=True)]
        both = teach(source, collate_clips(clips))
        for k, clip in enumerate(clips):
            assert torch.equal(both.frame[k : k + 1], teach(source, clip).frame)
            assert torch.equal(both.flow[k : k + 1], teach(source, clip).flow)

    def test_training_in_bf16_reads_the_same(self, folder):
        source, clip = TaughtFrames(folder, flow=True), clip_of("a", 0, 1, 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            taught = teach(source, clip)
        assert torch.equal(taught.frame, teach(source, clip).frame) and taught.flow.dtype == torch.float32
        assert torch.equal(taught.flow, teach(source, clip).flow)

    def test_flow_is_read_only_where_it_is_wanted(self, folder):
        source = TaughtFrames(folder)
        assert not source.has_flow and not source.has_features and TaughtFrames(folder, flow=True).has_flow
        assert teach(source, clip_of("a", 0, 1, 2)).flow is None

    @pytest.mark.parametrize(
        ("clip", "said"),
        [
            (clip_of("d", 0, 1, 2), "no sequence 'd'.*precompute"),
            (clip_of("b/c", 2, 3, 4), r"lacks frame 4 \('004'\) of sequence 'b/c'.*precompute"),
            (clip_of("a", 0, 1, 2, size=(8, 8)), "32x16 pixels and the clip 8x8"),
            (replace(clip_of("a", 0, 1, 2), info=()), "info is missing"),
            (replace(clip_of("a", 0, 1, 2), info=(ClipInfo("a", (0, 1, 2)),)), "info is missing"),
            (replace(clip_of("a", 0, 1, 2), info=(ClipInfo("a", (0, 1, 2), ("000", "001", "x")),)), "lacks frame 2"),
        ],
    )
    def test_what_is_not_there_is_named(self, folder, clip, said):
        with pytest.raises(DataError, match=said):
            teach(TaughtFrames(folder), clip)


class TestDamage:
    @pytest.fixture
    def folder(self, tmp_path):
        return write(tmp_path / "taught")

    def test_a_folder_that_is_none(self, tmp_path):
        with pytest.raises(DataError, match="there is no such manifest"):
            TaughtFrames(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content["record"].update(schema=2),
            lambda content: content["record"].update(window=-1),
            lambda content: content["record"].update(history_length=6),
            lambda content: content["record"].update(surprise=1),
            lambda content: content.pop("checksums"),
            lambda content: content["checksums"][0].pop("flow"),
            lambda content: content["checksums"].extend(content["checksums"]),
            lambda content: content["record"]["geometry"].update(mode="crop", size=None),
        ],
    )
    def test_a_manifest_of_another_form(self, folder, change):
        content = json.loads((folder / MANIFEST).read_text())
        change(content)
        (folder / MANIFEST).write_text(json.dumps(content))
        with pytest.raises(DataError, match=r"manifest.*precompute"):
            TaughtFrames(folder)

    def test_a_manifest_that_is_no_json_or_no_object(self, folder):
        for text in ("{", "[]", "[" * 100_000):
            (folder / MANIFEST).write_text(text)
            with pytest.raises(DataError, match="no manifest of a precomputed teacher"):
                TaughtFrames(folder)

    def test_missing_linked_and_cut_files(self, folder, tmp_path):
        file = folder / "00001.frame.npy"
        content = file.read_bytes()
        packed = io.BytesIO()
        np.savez(packed, np.zeros(1))
        for damaged in (content[:-1], content[:20], b"", packed.getvalue(), content.replace(b"(2,", b"(9,", 1)):
            file.write_bytes(damaged)
            with pytest.raises(DataError, match=r"00001.frame.npy: not a whole array"):
                TaughtFrames(folder)
        (tmp_path / "outside.npy").write_bytes(content)
        file.unlink()
        file.symlink_to(tmp_path / "outside.npy")
        with pytest.raises(DataError, match=r"00001.frame.npy: there is no such file"):
            TaughtFrames(folder)

    def test_an_array_of_another_shape(self, folder):
        np.save(folder / "00000.flow.npy", np.zeros((4, 3, *SIZE), np.float16))
        TaughtFrames(folder)  # flow is not wanted
        with pytest.raises(DataError, match=r"float16 of shape \(4, 3, 16, 32\) and not what"):
            TaughtFrames(folder, flow=True)

    def test_altered_content_is_found_on_first_use(self, folder):
        np.save(folder / "00000.frame.npy", np.zeros((4, 3, *SIZE), np.uint8))
        source = TaughtFrames(folder)
        teach(source, clip_of("b/c", 0, 1, 2))
        with pytest.raises(DataError, match="altered or damaged"):
            teach(source, clip_of("a", 0, 1, 2))

    def test_flow_that_was_not_kept(self, tmp_path):
        folder = write(tmp_path / "taught", replace(RECORD, has_flow=False))
        assert not list(folder.glob("*.flow.npy"))
        with pytest.raises(ConfigError, match=r"kd_flow.*--flow"):
            TaughtFrames(folder, flow=True)


class TestWriting:
    def test_it_appears_complete_and_alone(self, tmp_path):
        writer = TaughtWriter(tmp_path / "taught", RECORD)
        writer.add(outputs(4))
        assert not (tmp_path / "taught").exists()
        writer.add(outputs(2, 1))
        num_bytes = writer.finish()
        assert [path.name for path in tmp_path.iterdir()] == ["taught"]
        assert num_bytes == sum(path.stat().st_size for path in (tmp_path / "taught").glob("*.npy"))

    def test_it_goes_on_with_the_sequence_it_was_stopped_at(self, tmp_path):
        write(tmp_path / "whole")
        stopped = TaughtWriter(tmp_path / "taught", RECORD)
        stopped.add(outputs(4))
        with pytest.raises(RuntimeError, match="killed"):
            stopped.add(killed())
        again = TaughtWriter(tmp_path / "taught", replace(RECORD, teacher=Path("moved")))
        assert again.num_done == 1
        write(tmp_path / "taught")
        for path in (tmp_path / "whole").iterdir():
            assert path.read_bytes() == (tmp_path / "taught" / path.name).read_bytes()
        assert TaughtWriter(tmp_path / "taught", RECORD).num_done == 2  # nothing is left to do

    def test_a_stopped_one_of_other_settings_is_begun_anew(self, tmp_path):
        TaughtWriter(tmp_path / "taught", RECORD).add(outputs(4))
        assert TaughtWriter(tmp_path / "taught", replace(RECORD, window=3)).num_done == 0

    def test_an_unreadable_beginning_is_made_again(self, tmp_path, caplog):
        TaughtWriter(tmp_path / "taught", RECORD).add(outputs(4))
        (tmp_path / ".taught.partial" / MANIFEST).write_text("{")
        assert TaughtWriter(tmp_path / "taught", RECORD).num_done == 0
        assert "what was finished there is made again" in caplog.text
        assert not list(tmp_path.iterdir())

    def test_only_a_precomputed_teacher_is_replaced_and_only_on_request(self, tmp_path):
        folder, other = write(tmp_path / "taught"), replace(RECORD, weights_sha256="1" * 64)
        with pytest.raises(ConfigError, match="--overwrite"):
            TaughtWriter(folder, other)
        assert TaughtFrames(write(folder, other, overwrite=True)).record == other
        (tmp_path / "mine").mkdir()
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="no precomputed teacher"):
                TaughtWriter(tmp_path / "mine", RECORD, overwrite=overwrite)

    def test_outputs_that_are_not_finite_are_refused(self, tmp_path):
        made = outputs(4)
        made[2].frame[0, 0, 0, 0] = torch.nan
        with pytest.raises(DataError, match="'a', frame 4: the teacher gives infinite or undefined frame"):
            TaughtWriter(tmp_path / "taught", RECORD).add(made)
        without = [output._replace(flow=None) for output in outputs(4)]
        with pytest.raises(DataError, match="no flow"):
            TaughtWriter(tmp_path / "taught", RECORD).add(without)


def killed():
    yield outputs(1)[0]
    raise RuntimeError("killed")


@pytest.mark.parametrize("mode", ["crop", "scaleWidth_and_crop", "resize_and_scaledCrop", "randomScaleHeight"])
def test_clips_cut_by_chance_are_refused(mode):
    with pytest.raises(ConfigError, match=f"'{mode}' crops or scales"):
        check_geometry(GeometryConfig(mode=mode))
    check_geometry(GeometryConfig(mode="scaleWidth"))


def write_data(root: Path) -> Path:
    """Two sequences: a box, with an instance id, moves over a ground."""
    rng = np.random.default_rng(0)
    for name, length in (("a", 9), ("b", 6), ("short", 2)):
        for modality in ("A", "B", "inst"):
            (root / f"train_{modality}" / name).mkdir(parents=True)
        for t in range(length):
            labels = np.zeros(SIZE, np.uint8)
            labels[4:12, 4 + t : 12 + t] = 1
            frame = cv2.add(np.full((*SIZE, 3), 80, np.uint8), rng.integers(0, 99, (*SIZE, 3), np.uint8))
            for modality, picture in (("A", labels), ("B", frame), ("inst", labels)):
                cv2.imwrite(str(root / f"train_{modality}" / name / f"{t:03d}.png"), picture)
    return root


def write_teacher(run: Path, **changes: object) -> Path:
    """A teacher of random weights, as training leaves it."""
    settings = {
        "generator": TINY,
        "condition": SPEC,
        "size": SIZE,
        "folder": READ,
    }
    architecture = Architecture(**(settings | changes))
    torch.manual_seed(0)
    model = architecture.build()
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_var.uniform_(0.5, 2.0)  # so that it matters whose statistics are used
    state = {"ema_player": None, "architecture": architecture_dict(architecture), "best": None}
    save_checkpoint(run / "checkpoints", 1, {"generator": model.state_dict()}, state)
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("runs") / "teacher")


def command(teacher: Path, data: Path, out: Path, *more: str) -> int:
    arguments = ["precompute", "--teacher", str(teacher), "--data", str(data), "--out", str(out), "--quiet"]
    return main([*arguments, "--device.precision", "fp32", "--device.cpu", *more])


def real_clip(root: Path, sequence: int, start: int, stop: int, flip: bool = False) -> Clip:
    folder = open_folder(replace(READ, root=root))
    return read_clip(folder, sequence, range(start, stop), whole(), flip)


def whole() -> Geometry:
    return Geometry(source=SIZE, resized=SIZE, offset=(0, 0), size=SIZE, interpolation="area")


class Depth(nn.Module):
    """A step model whose frame counts how many of its own frames it rests on, in 8-bit levels."""

    condition_channels, history_length, size_multiple = 2, 2, 1

    def step(self, condition, history):
        counts = to_uint8(history.frames)[:, :, 0, 0, 0]
        own = torch.where(counts < 50, counts.float(), 0)  # the real frames are brighter
        frame = (own[:, -1].view(-1, 1, 1, 1).expand(-1, 3, *SIZE) + 1) / 127.5 - 1
        return FrameOutput(frame, frame), advance(history, condition, frame)


class TestVerb:
    def test_what_is_read_is_what_the_live_teacher_says(self, teacher, data, tmp_path, capsys):
        assert command(teacher, data, tmp_path / "taught", "--flow", "--window", "0") == 0
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (summary["num_sequences"], summary["num_frames"], summary["num_found"]) == (2, 11, 0)
        source = TaughtFrames(tmp_path / "taught", flow=True)
        trained = load_trained(teacher)
        live = LiveTeacher(trained.generator)
        for sequence, length in ((0, 9), (1, 6)):
            clip = real_clip(data, sequence, 0, length)
            now = live.teach(clip, encode_clip(SPEC, clip), "full")
            then = teach(source, clip)
            assert torch.equal(to_uint8(now.frame), to_uint8(then.frame))
            assert_close(then.flow, now.flow, rtol=1e-3, atol=1e-3)
        source.check(open_folder(replace(READ, root=data)), trained.checkpoint, 2)

    def test_a_window_begins_from_real_frames_with_a_history_of_its_own(self, data):
        folder = open_folder(replace(READ, root=data))
        device = open_device(DeviceConfig(cpu=True, precision="fp32"))

        def depths(window):
            made = teacher_outputs(Depth(), folder, 0, rollout_spans(9, 2, window), device)
            return [int(to_uint8(output.frame)[0, 0, 0, 0]) for output in made]

        assert depths(0) == [1, 2, 3, 4, 5, 6, 7]
        assert depths(3) == [1, 2, 3, 3, 4, 5, 3]

    def test_the_same_command_again_has_nothing_to_do(self, teacher, data, tmp_path, capsys):
        for found in (0, 11):
            assert command(teacher, data, tmp_path / "taught") == 0
            assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_found"] == found
        assert command(teacher, data, tmp_path / "taught", "--window", "4") == 2
        assert "--overwrite" in capsys.readouterr().err
        assert command(teacher, data, tmp_path / "taught", "--window", "4", "--max-frames", "5", "--overwrite") == 0
        record = TaughtFrames(tmp_path / "taught").record
        assert [len(sequence.stems) for sequence in record.sequences] == [5, 5] and record.window == 4

    def test_a_teacher_with_instance_features_sees_the_real_looks(self, data, tmp_path):
        spec = replace(SPEC, use_instances=True)
        folder = replace(READ, use_instances=True)
        features = FeatureConfig(channels=2, width=4, num_downsamples=2)
        run = write_teacher(tmp_path / "run", condition=spec, folder=folder, features=features)
        assert command(run, data, tmp_path / "taught") == 0
        clip = read_clip(open_folder(replace(folder, root=data)), 1, range(6), whole())
        assert teach(TaughtFrames(tmp_path / "taught"), clip).frame.shape == (1, 4, 3, *SIZE)

    @pytest.mark.parametrize(
        ("changes", "more", "said"),
        [
            (
                {"generator": replace(TINY, use_flow=False)},
                "--flow",
                "flow",
            ),
            ({"stage": "spatial"}, "", "student"),
            ({"condition": replace(SPEC, class_names=("x", "y"))}, "", "another condition"),
            (
                {"folder": replace(READ, geometry=GeometryConfig(mode="crop"))},
                "",
                "crop",
            ),
            ({}, "--max-frames=2", "has more frames than a history of 2; give longer ones"),
        ],
    )
    def test_what_cannot_be_precomputed_is_refused(self, data, tmp_path, capsys, changes, more, said):
        run = write_teacher(tmp_path / "run", **changes)
        assert command(run, data, tmp_path / "taught", *([more] if more else [])) == 2
        errors = capsys.readouterr().err
        assert said in errors.splitlines()[-1]
        assert not (tmp_path / "taught").exists()


@pytest.mark.parametrize(("setting", "value"), [("window", -1), ("max_frames", 0)])
def test_settings_without_sense_are_refused(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} must be"):
        Precompute(teacher=Path("t"), data=Path("d"), out=Path("o"), **{setting: value})


class TestCheck:
    @pytest.fixture(scope="class")
    def taught(self, teacher, data, tmp_path_factory):
        folder = tmp_path_factory.mktemp("cache") / "taught"
        assert command(teacher, data, folder) == 0
        return TaughtFrames(folder)

    @pytest.fixture
    def checkpoint(self, teacher):
        return load_trained(teacher).checkpoint

    def folder(self, data, **changes):
        return open_folder(replace(READ, root=data, **changes))

    def test_fewer_frames_are_fine(self, taught, data, checkpoint):
        taught.check(self.folder(data, test_tail=1), checkpoint, 2)

    def test_other_settings_are_named(self, taught, data, checkpoint, tmp_path):
        other = write_teacher(tmp_path / "other", generator=replace(TINY, width=2))
        other_checkpoint = load_trained(other).checkpoint
        assert weights_sha256(other_checkpoint) != weights_sha256(checkpoint)
        smaller = GeometryConfig(mode="exact", size=(8, 16))
        for folder, weights, past, said in (
            (self.folder(data), other_checkpoint, 2, "other weights"),
            (self.folder(data, num_classes=3), checkpoint, 2, "another condition"),
            (self.folder(data, geometry=smaller), checkpoint, 2, "another geometry"),
            (self.folder(data, geometry=GeometryConfig(mode="crop")), checkpoint, 2, "'crop' crops"),
            (self.folder(data), checkpoint, 3, "another history length than is used here, 2 and 3"),
        ):
            with pytest.raises(ConfigError, match=said):
                taught.check(folder, weights, past)

    def test_a_data_set_that_has_grown_is_found(self, taught, data, checkpoint, tmp_path):
        grown = shutil.copytree(data, tmp_path / "grown")
        for modality in ("A", "B"):
            shutil.copy(grown / f"train_{modality}/b/005.png", grown / f"train_{modality}/b/006.png")
        with pytest.raises(DataError, match=r"lacks frame 6 \('006'\) of sequence 'b'"):
            taught.check(self.folder(grown), checkpoint, 2)
        for modality in ("A", "B"):
            (grown / f"train_{modality}/b").rename(grown / f"train_{modality}/new")
        with pytest.raises(DataError, match="no sequence 'new'"):
            taught.check(self.folder(grown), checkpoint, 2)


class TestTraining:
    """The whole way with one training step each, at a size that the discriminators take."""

    SIZE = ("--recipe.data.folder.geometry.size", "32", "64")
    STEP = ("--recipe.train.steps", "1", "--recipe.train.max-minutes", "None", "--quiet")

    @pytest.fixture(scope="class")
    def run(self, data, tmp_path_factory):
        run = tmp_path_factory.mktemp("runs") / "teacher"
        shape = ("--recipe.generator.width", "4", "--recipe.generator.num-blocks", "2")
        assert main(["train-teacher", *self.common(data, run), *shape]) == 0
        return run

    def common(self, data: Path, run: Path) -> tuple[str, ...]:
        clips = ("--recipe.data.sampling.num-frames", "4", "--recipe.data.batch-size", "1")
        split = ("--recipe.data.folder.test-tail", "2", "--recipe.data.folder.num-classes", "2")
        return ("demo", "--data", str(data), "--run", str(run), *self.SIZE, *self.STEP, *clips, *split)

    def student(self, data: Path, run: Path, *more: str) -> int:
        shape = ("--recipe.student.width", "4", "--recipe.student.num-blocks", "2")
        return main(["train-skd", "demo:demo", *self.common(data, run)[1:], *shape, *more])

    def test_a_student_learns_while_the_teacher_rests(self, run, data, tmp_path, monkeypatch):
        assert command(run, data, tmp_path / "taught") == 0

        def at_work(*args):
            raise AssertionError("the teacher runs")

        monkeypatch.setattr(LiveTeacher, "teach", at_work)
        taught = ("--taught", str(tmp_path / "taught"), "--teacher", str(run))
        assert self.student(data, tmp_path / "student", *taught) == 0
        reports = [json.loads(line) for line in (tmp_path / "student/metrics.jsonl").read_text().splitlines()]
        assert any("kd_reconstruction" in key for report in reports for key in report)

    def test_precomputed_frames_need_their_teacher(self, data, tmp_path, capsys):
        assert self.student(data, tmp_path / "student", "--taught", str(tmp_path)) == 2
        assert "--taught needs --teacher" in capsys.readouterr().err
