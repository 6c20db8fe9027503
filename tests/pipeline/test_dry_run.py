"""What `--dry-run` shows, and that it starts nothing."""

from __future__ import annotations

import ray

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
    assert main(["--config", str(tmp_path / "search.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    for text in (
        "6 studies",
        "photo+sketch",
        "method.instapg = true",
        "otherwise for forget clipart+sketch",
        "0.001 to 0.1, log",
        "9 trials or validation H 90 % or 4 trials without a better one; the median rule",
        "an executor is 1 x (1 CPU)",
        "min of training",
        "nothing was started",
    ):
        assert text in out, text
    assert not ray.is_initialized()
    assert not (tmp_path / "out").exists()
