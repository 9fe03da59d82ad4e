"""What the pages name must exist: options, verbs, presets, scripts, files, and every flag of vid2vid."""

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from distill.task import TemporalFeatures
from distill.terms import DistillWeights
from fastv2v.cli import COMMANDS, main
from students.presets import STUDENTS
from teachers.presets import FIRST_PRESETS, PRESETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/from-vid2vid.md", "docs/conditions.md", "docs/distillation.md")
OPTIONS_OF = {"docs/distillation.md": ("train-skd", "train-tkd")}
"""Verbs that options of a recipe belong to where a page names no verb; train-teacher by default."""
DISTILLING = {"train-skd": ("demo", "demo:base"), "train-tkd": ("demo",)}
"""Presets that show all options of a verb."""

# fmt: off
FLAGS = (
    "dataroot", "batchSize", "loadSize", "fineSize", "input_nc", "label_nc", "output_nc", "netG", "ngf", "ndf",
    "n_blocks", "n_downsample_G", "gpu_ids", "n_gpus_gen", "name", "dataset_mode", "model", "nThreads",
    "checkpoints_dir", "norm", "serial_batches", "display_winsize", "display_id", "tf_log", "max_dataset_size",
    "resize_or_crop", "no_flip", "use_instance", "label_feat", "load_features", "netE", "nef", "n_downsample_E",
    "feat_num", "n_blocks_local", "n_local_enhancers", "n_frames_G", "n_scales_spatial", "no_first_img",
    "use_single_G", "fg", "fg_labels", "no_flow", "no_canny_edge", "no_dist_map", "random_scale_points",
    "densepose_only", "openpose_only", "add_face_disc", "remove_face_labels", "basic_point_only",
    "random_drop_prob", "load_pretrain", "debug", "fp16", "local_rank", "display_freq", "print_freq",
    "save_latest_freq", "save_epoch_freq", "continue_train", "phase", "which_epoch", "niter", "niter_decay",
    "beta1", "lr", "TTUR", "gan_mode", "pool_size", "no_html", "num_D", "n_layers_D", "no_vgg", "no_ganFeat",
    "lambda_feat", "lambda_T", "lambda_F", "sparse_D", "n_frames_D", "n_scales_temporal", "max_frames_per_gpu",
    "max_frames_backpropagate", "max_t_step", "n_frames_total", "niter_step", "niter_fix_global", "ntest",
    "aspect_ratio", "results_dir", "how_many", "use_real_img", "start_frame",
)
# fmt: on
"""Every option of vid2vid's training and testing programs."""


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def spans(page: str) -> list[str]:
    """Code of a page: what stands between backticks, and the commands of its blocks, joined where they go on."""
    text = read(page)
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)) + lines


def rows(page: str) -> Iterator[list[str]]:
    """Cells of every line of a table."""
    for line in read(page).splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


@cache
def options(*words: str) -> frozenset[str]:
    """What ``fastv2v WORDS --help`` lists."""

    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main([*words, "--help"])
    return frozenset(re.findall(r"--[a-z][a-z0-9.-]*", out.getvalue()))


def known(verb: str) -> frozenset[str]:
    """Options of a verb; of one with presets those of all of a few that differ."""
    own = {"train-teacher": ("street", "pose-512"), "train-first": ("street",), "search": ("street",)}
    presets = {**own, **DISTILLING}.get(verb)
    return frozenset().union(*(options(verb, preset) for preset in presets)) if presets else options(verb)


def is_known(option: str, among: frozenset[str]) -> bool:
    """Whether there is such an option, or a group of options of this name."""
    return option in among or any(other.startswith(f"{option}.") for other in among)


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # options keep to one line


@pytest.mark.parametrize("page", PAGES)
class TestPages:
    def test_every_option_exists(self, page):
        missing, seen = [], set()
        for span in spans(page):
            try:
                words = shlex.split(span)
            except ValueError:
                continue  # a piece of prose or Python
            words = words[1:] if words[:1] == ["fastv2v"] else words
            launched = any("train_teacher.py" in word for word in words)
            if not words or not (words[0] in COMMANDS or words[0].startswith("--recipe")):
                continue
            verbs = words[:1] if words[0] in COMMANDS and not launched else OPTIONS_OF.get(page, ("train-teacher",))
            named = [word for word in words if word.startswith("--")]
            there = frozenset().union(*(known(verb) for verb in verbs))
            missing += [f"{' or '.join(verbs)} {word}" for word in named if not is_known(word, there)]
            seen.update(named)
        assert not missing and len(seen) >= 15

    def test_bare_options_belong_to_a_verb(self, page):
        verbs = ("train-teacher", "show", "synthesize") if page not in OPTIONS_OF else (*OPTIONS_OF[page], "precompute")
        everywhere = frozenset().union(*(known(verb) for verb in verbs))
        bare = {span.split()[0] for span in spans(page) if span.startswith("--")}
        assert all(is_known(option, everywhere) for option in bare)

    def test_every_verb_exists(self, page):
        named = {m for span in spans(page) for m in re.findall(r"fastv2v ([a-z][a-z-]+)", span)}
        assert named and named <= set(COMMANDS)

    def test_every_preset_on_a_command_line_exists(self, page):
        presets = dict.fromkeys(("train-teacher", *DISTILLING), PRESETS) | {"train-first": FIRST_PRESETS}
        for verb, known_presets in presets.items():
            named = {m for span in spans(page) for m in re.findall(rf"{verb} ([a-z][a-z0-9-]*)(?::(\w+))?", span)}
            assert {name for name, _ in named} <= set(known_presets)
            assert {student for _, student in named if student} <= set(STUDENTS)

    def test_every_file_exists(self, page):
        text = read(page)
        scripts = set(re.findall(r"(?:scripts|tests)/[\w/]+\.\w+", text))
        links = {ROOT / "docs" / link for link in re.findall(r"\]\(([\w./-]+)\)", text)}
        assert all((ROOT / script).is_file() for script in scripts), scripts
        assert links and all(link.is_file() for link in links), links


SITE = ("first-hour", "method", "people", "tutorials/*")
"""Pages of the site that lead through commands."""


@pytest.mark.parametrize("page", [p.relative_to(ROOT).as_posix() for s in SITE for p in ROOT.glob(f"docs/{s}.md")])
class TestSite:
    def test_every_command_exists_with_its_options_and_preset(self, page):
        for span in spans(page):
            if not (found := re.match(r"(?:\w+=\w+ )?fastv2v ([a-z][a-z-]+)(.*)", span)):
                continue
            verb, rest = found.groups()
            assert verb in COMMANDS, span
            named = re.findall(r"(?<!\S)(--[a-z][\w.-]*)", rest.split(" #")[0])
            assert all(is_known(option, known(verb)) for option in named if option != "--help"), span
            if verb in ("train-teacher", *DISTILLING) and (preset := re.match(r" ([a-z][\w-]*)", rest)):
                assert preset[1] in PRESETS, span

    def test_every_script_exists(self, page):
        named = re.findall(r"(?:scripts|docs|benchmarks)/[\w/]+\.(?:sh|py)", read(page))
        assert all((ROOT / name).is_file() for name in named), named


class TestDeployment:
    PAGE = "docs/deploy.md"

    def test_every_option_exists(self):
        ours = {verb: known(verb) for verb in ("doctor", "stream", "export", "benchmark")}
        for span in spans(self.PAGE):
            if found := re.search(r"fastv2v(?::[cg]pu)? (doctor|stream|export|benchmark)\b(.*)", span):
                assert set(re.findall(r"(--[a-z][\w.-]*)", found[2].split("|")[0])) <= ours[found[1]], span
            elif span.startswith("--tensorrt."):
                assert span.split()[0] in ours["export"], span

    def test_what_it_names_is_there(self):
        text = read(self.PAGE)
        names = re.findall(r"(?:scripts/[\w/]+\.\w+|requirements-runtime\.txt|constraints\.txt)", text)
        assert names and all((ROOT / name).is_file() for name in names)
        stages = re.findall(r"^FROM \S+ AS (\w+)", read("Dockerfile"), re.MULTILINE)
        assert set(re.findall(r"--target (\w+)", text)) == set(stages)


class TestMigration:
    PAGE = PAGES[0]

    def test_every_flag_has_its_row(self):
        first = " ".join(row[0] for row in rows(self.PAGE))
        named = re.findall(r"`(\w+)`", first)
        assert set(FLAGS) - set(named) == set()
        flags = [name for name in named if name in FLAGS]
        assert len(flags) == len(set(flags)) == len(FLAGS)

    def test_every_row_of_flags_says_where_they_went(self):
        for row in rows(self.PAGE):
            if len(row) == 3 and row[0].startswith("`"):
                assert row[1].startswith("`") or (row[1] == "none" and row[2]), row

    def test_every_preset_has_its_row(self):
        table = [row for row in rows(self.PAGE) if len(row) == 4 and row[0] != "vid2vid"]
        named = {name for row in table for name in re.findall(r"`([\w-]+)`", row[1])}
        others = {row[0].strip("`") for row in rows("docs/world.md") if len(row) == 4 and row[0].startswith("`world")}
        assert named | others == set(PRESETS) and not named & others

    def test_every_defect_is_answered(self):
        answered = [row[0] for row in rows(self.PAGE) if re.fullmatch(r"D\d+", row[0]) and all(row)]
        assert answered == [f"D{number}" for number in range(1, 27)]


class TestDistillation:
    PAGE = PAGES[2]

    def test_every_term_has_its_row(self):
        named = [row[0].strip("`") for row in rows(self.PAGE) if row[0].startswith("`kd_")]
        assert named == [field.name for field in fields(DistillWeights)]

    def test_every_kind_of_temporal_features_has_its_row(self):
        named = {name for row in rows(self.PAGE) if len(row) == 2 for name in re.findall(r"`(\w+)`", row[0])}
        assert named == set(get_args(TemporalFeatures))

    def test_every_file_in_the_text_exists(self):
        named = re.findall(r"`((?:distill|students|interpolate|export)/[\w/]*(?:\.py)?)`", read(self.PAGE))
        assert len(named) >= 4 and all((ROOT / name).exists() for name in named)


class TestWorld:
    PAGE = "docs/world.md"

    def test_every_option_of_a_recipe_exists(self):
        named = {option for span in spans(self.PAGE) for option in re.findall(r"--recipe[\w.-]*", span)}
        there = options("train-teacher", "world") | options("train-first", "world")
        assert len(named) >= 5 and all(is_known(option, there) for option in named)

    def test_every_file_exists(self):
        named = re.findall(r"`((?:scripts|fastv2v|teachers|tests)/[\w/]+\.\w+)`", read(self.PAGE))
        assert len(named) >= 4 and all((ROOT / name).is_file() for name in named)


def test_the_picture_of_conditions_is_small():
    assert (ROOT / "docs/images/conditions.jpg").stat().st_size < 300_000
