"""What `--dry-run` shows, and that it starts nothing."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch

from adu.context import ContextConfig, load_context
from pipeline.jobs.config import SearchConfig
from pipeline.jobs.plan import make_plan
from pipeline.jobs.sizing import few_shot_bytes
from pipeline.search import main
from tests.tiny import tiny_backbone, tiny_manifest

CONFIG = """
context:
  backbone: {{name: {folder}/model}}
  data: {{manifest: {folder}/manifest, shots: 2, val_shots: 1}}
forget: {{size: [1, 2]}}
train: {{epochs: 4}}
space:
  method.instapg: {{choices: [true, false], default: true}}
  method.instapg_layer: {{low: 1, high: 2, default: 1, when: {{method.instapg: true}}}}
  train.lr: 0.01
overrides:
  sketch: {{train.lr: {{low: 0.001, high: 0.1, log: true, default: 0.01}}}}
search: {{trials: 9, target_h: 0.9, patience: 4, scheduler: median}}
output: {folder}/out
"""


def test_it_shows_studies_spaces_budgets_and_time_and_starts_nothing(tmp_path, capsys):
    tiny_backbone(tmp_path / "model")
    tiny_manifest(tmp_path)
    (tmp_path / "search.yaml").write_text(CONFIG.format(folder=tmp_path))
    assert main(["--config", str(tmp_path / "search.yaml"), "--dry-run", "--prove.quick"]) == 0
    out = capsys.readouterr().out
    for text in (
        "6 studies",
        "photo+sketch",
        "method.instapg = true",
        "otherwise for forget clipart+sketch",
        "0.001 to 0.1, log",
        "9 trials or validation H 90 % or 4 trials without a better one; the median rule",
        "an executor is 1 x (1 CPU)",
        "13 attacks on each of 10 models a study, of which 4 are trained for it",
        "of training on ",
        "GiB of decoded images",
        "worker-hours",
        "nothing was started",
    ):
        assert text in out, text
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()


def test_it_sizes_a_search_for_gpus_from_one_measured_figure(tmp_path, capsys):
    tiny_backbone(tmp_path / "model")
    tiny_manifest(tmp_path)
    (tmp_path / "search.yaml").write_text(CONFIG.format(folder=tmp_path))
    arguments = ["--config", str(tmp_path / "search.yaml"), "--dry-run", "--gpus-per-worker", "0.5"]
    arguments += ["--resources.executors", "4", "--cpus-per-worker", "3"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "4 executors: 12 CPU and 2 GPU" in out
    assert "time       is not known" in out

    assert main([*arguments, "--images-per-s", "10"]) == 0
    out = capsys.readouterr().out
    # 9 cells of 2 shots and 1 validation image, 4 epochs; a step is worth 2.4 forward passes.
    step_s, epochs = 1 / 10, 4
    trial_s = epochs * 9 * (2 + 1 / 2.4) * step_s
    assert f"a trial takes {trial_s:.2g} s, so {4 * 3600 / trial_s:.3g} an hour" in out
    # 6 studies of 9 trials, 9 runs again, 10 final ones; 36 test images for these, and zero-shot.
    search_s = 6 * ((9 + 5 + 4 + 10) * trial_s + 36 * (10 + 1) / 2.4 * step_s) / 4
    assert f"in all {search_s / 3600 * 2:.3g} GPU-hours" in out
    assert f"about {search_s / 60:.0f} min of training on 4 executors" in out


def test_it_tells_the_memory_that_the_images_take(tmp_path):
    model, manifest = tiny_backbone(tmp_path / "model"), tiny_manifest(tmp_path)
    context = ContextConfig.model_validate(
        {
            "backbone": {"name": str(model)},
            "data": {"manifest": str(manifest), "shots": 2, "val_shots": 1},
        }
    )
    space = {"train.lr": {"low": 0.1, "high": 0.2, "default": 0.1}}
    config = SearchConfig.model_validate({"context": context, "space": space})
    plan = make_plan(config, pytest.fail)
    loaded = load_context(context, torch.device("cpu"))
    held = sum(
        np.prod(images.image(i).shape)
        for images in (loaded.train, loaded.val)
        for i in range(len(images))
    )
    split = plan.few_shot_split()
    assert few_shot_bytes(plan.manifest, split, str(model)) == held
