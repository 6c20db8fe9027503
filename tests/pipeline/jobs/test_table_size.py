"""A table's protocol in words, and its size by arithmetic; ``--dry-run`` starts nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import ray

from adu.models.openclip import caption_flops, forward_flops
from pipeline.demo_data import prepare_demo
from pipeline.jobs.table_plan import ReproduceConfig, TablePlan, plan_table
from pipeline.jobs.table_size import protocol, table_size
from pipeline.reproduce import main
from pipeline.results.tables import table_rows
from tests.tiny import CLASSES, DOMAINS, tiny_backbone, tiny_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and 72 images of three domains and classes: 8 of each, half of them for testing."""
    folder = tmp_path_factory.mktemp("size")
    tiny_backbone(folder / "model")
    tiny_manifest(folder)
    return folder


def planned(folder, table, **values):
    data = {"manifest": str(folder / "manifest"), "shots": 2, "val_shots": 2, "quick_val_shots": 1}
    context = {"backbone": {"name": str(folder / "model")}, "data": data}
    return plan_table(ReproduceConfig(table=table, context=context, **values), prepare_demo)


def words(table, n_domains, **values):
    manifest = SimpleNamespace(name="x", domains=tuple("abcdef"[:n_domains]))
    rows = tuple(table_rows(table, "x", n_domains, 12))
    return "\n".join(
        protocol(TablePlan(ReproduceConfig(table=table, **values), manifest, rows, ""))
    )


@pytest.mark.parametrize(
    ("n_domains", "sets"),
    [
        (4, "14 forget sets, every proper subset of 4 domains (4 of 1, 6 of 2 and 4 of 3)"),
        (6, "62 forget sets, every proper subset of 6 domains (6 of 1, 15 of 2, 20 of 3, 15 of 4"),
    ],
)
def test_the_main_table_is_the_papers_protocol_unless_told_otherwise(n_domains, sets):
    told = words("main", n_domains, method={"recipe": "paper"})
    assert f"protocol   {sets}" in told
    assert "every run with seeds 1, 2 and 3" in told
    assert "H of each run, then the mean over the forget sets of one size, then mean and" in told
    assert "8 shots of each domain and class, 50 epochs in batches of 32; the last epoch's" in told
    assert "not as the paper has it" not in told


def test_what_is_not_the_papers_is_told_with_what_is():
    method = {"recipe": "paper", "gamma": 1}
    told = words("ablation", 4, method=method, train={"epochs": 5}, seeds=(0,))
    assert "4 forget sets of 4 domains (4 of 1); every run with seed 0" in told
    expected = "not as the paper has it: seeds [0] ([1, 2, 3]), epochs 5 (50), gamma 1.0 (30.0)"
    assert told.endswith(expected)


def test_a_recipe_trains_all_rows_alike():
    given = {"method": {"recipe": "paper"}, "train": {"lr": 0.1}}
    train = ReproduceConfig(table="main", **given).train
    assert (train.warmup, train.warmup_epochs, train.lr) == ("constant", 1, 0.1)


def test_the_size_of_a_table_is_the_sum_of_its_runs(folder):
    train = {"epochs": 4, "batch_size": 5, "warmup_epochs": 0}
    plan = planned(folder, "main", train=train, seeds=(1, 2))
    size = table_size(plan)
    n_sets, seeds, epochs, n_classes = 3 + 3, 2, 4, 3
    # Of a domain's 6 images each batch of 5 takes one.
    steps_of_run, images_of_run = epochs * 6, epochs * 3 * 3 * 2
    # All validation images once, one of each cell otherwise, and the test images.
    full, quick, test = 3 * 3 * 2, 3 * 3, 3 * 3 * 4
    with_epochs, without = full + (epochs - 1) * quick + test, full + test
    on_images = 6 * seeds * n_sets  # CLIPFit, BBF, CoOp, MaPLe, Baseline and ADU
    assert size.runs == n_sets + 7 * seeds * n_sets
    assert size.steps == on_images * steps_of_run
    assert size.trained == on_images * images_of_run
    assert size.looked_at == 7 * seeds * n_sets * with_epochs + n_sets * without
    # BBF and CoOp only look at images; CLIPFit, CoOp and MaPLe learn from captions, and BBF tries
    # 20 candidates on them.
    image_steps = (4 * 2.4 + 2 * 1) * images_of_run
    assert size.image_forwards == pytest.approx(seeds * n_sets * image_steps + size.looked_at)
    captions = (3 * 2.4 + 20) * steps_of_run * n_classes
    assert size.caption_forwards == pytest.approx(seeds * n_sets * captions)


def test_plain_batches_and_other_shots_count_as_they_are(folder):
    train = {"epochs": 4, "batch_size": 5, "warmup_epochs": 0, "sampling": "plain"}
    size = table_size(planned(folder, "shots", train=train, seeds=(1,)))
    # Rows of 1 and 2 shots, Baseline and ADU, on three forget sets; more shots than there are
    # images are left out.
    assert size.runs == 2 * 2 * 3
    assert size.steps == 2 * 3 * 4 * (2 + 4)
    assert size.trained == 2 * 3 * 4 * (9 + 18)


def test_captions_cost_what_their_tower_computes(folder):
    def blocks(n_tokens, width, n_blocks):
        projections = 2 * n_tokens * width * (3 + 1 + 4 + 4) * width
        return n_blocks * (projections + 2 * 2 * n_tokens**2 * width)

    patches = 2 * 16 * 32 * 3 * 8**2
    assert caption_flops(str(folder / "model")) == blocks(16, 16, 2) + 2 * 16 * 16
    assert forward_flops(str(folder / "model")) == blocks(17, 32, 4) + 2 * 32 * 16 + patches


def test_a_dry_run_shows_it_and_starts_nothing(folder, tmp_path, capsys):
    arguments = ["ablation", "--manifest", str(folder / "manifest"), "--shots", "2"]
    arguments += ["--backbone", str(folder / "model"), "--context.data.val-shots", "1"]
    arguments += ["--epochs", "4", "--train.warmup-epochs", "0", "--gpus-per-worker", "0.5"]
    arguments += ["--cpus-per-worker", "3", "--output", str(tmp_path / "out"), "--dry-run"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert f"table ablation: tiny, {len(DOMAINS)} domains, {len(CLASSES)} classes" in out
    assert "3 forget sets of 3 domains (3 of 1); every run with seeds 1, 2 and 3" in out
    assert "54 runs: 6 rows" in out
    assert "18 images for training, 9 for validation, 36 for testing" in out
    assert "1 executor: 3 CPU and 0.5 GPU" in out
    # 18 images a step of 2.4 forward passes, 9 validated, four times; 36 tested.
    forwards = 54 * (4 * (18 * 2.4 + 9) + 36)
    assert f"time       {forwards / 2.4 / 3600 * 0.5:.3g} GPU-hours / R, with R training" in out
    assert "nothing was started" in out

    assert main([*arguments, "--images-per-s", "10", "--resources.executors", "2"]) == 0
    out = capsys.readouterr().out
    seconds = forwards / 2.4 / 10
    assert f"about {seconds / 2 / 60:.0f} min on 2 executors (arithmetic from 10 training" in out
    assert f"in all {seconds / 3600 * 0.5:.3g} GPU-hours, times the price of one" in out
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()
