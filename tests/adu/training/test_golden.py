"""The demo's loss curve and metrics for ADU, pinned: numerics change on purpose or not at all.

After a change on purpose, write the file anew and say why in CHANGELOG.md:

    python -m tests.adu.training.test_golden
"""

import json
import tempfile
from pathlib import Path

import pytest
import torch

from adu.context import Context, ContextConfig, load_context
from adu.data.decoded import DataConfig
from adu.demo.dataset import write_images
from adu.evaluation.evaluate import evaluate_test
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from pipeline.ingest import IngestConfig, ingest

GOLDEN = Path(__file__).with_name("golden_demo_adu.json")

RUN = {
    "forget": ["sketch"],
    "method": {"name": "adu", "gamma": 1.0, "lambda": 3.0},
    "train": {"epochs": 3, "batch_size": 16, "lr": 0.02, "warmup_epochs": 0},
}


def demo_context(folder: Path) -> Context:
    write_images(folder / "images", images_per_cell=16, seed=0)
    manifest = str(folder / "manifest")
    ingest(IngestConfig(source=str(folder / "images"), out=manifest, name="demo", synthetic=True))
    data = DataConfig(manifest=manifest, shots=4, val_shots=2)
    return load_context(ContextConfig(data=data), torch.device("cpu"))


def measure(context: Context) -> dict:
    trainer = Trainer(RunConfig.model_validate(RUN), context)
    losses = [report.losses for report in trainer.epochs()]
    test = evaluate_test(trainer.model, context, trainer.run.forget).scores
    return {
        "run": RUN,
        "manifest_digest": context.manifest.digest,
        "losses": losses,
        "test": test.as_dict(),
        "n_test": test.n_by_domain,
    }


def test_the_demos_loss_curve_and_metrics_are_as_they_were(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    found = measure(demo_context(tmp_path))
    assert found["run"] == golden["run"]
    assert found["manifest_digest"] == golden["manifest_digest"]
    # Other processors add up in another order: a few in ten thousand after 24 steps.
    for epoch, (losses, expected) in enumerate(
        zip(found["losses"], golden["losses"], strict=True), start=1
    ):
        assert losses == pytest.approx(expected, rel=1e-3), f"epoch {epoch}"
    # One image that falls to the other side moves a metric by about a hundredth.
    assert found["test"] == pytest.approx(golden["test"], abs=0.015)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps(measure(demo_context(Path(scratch))), indent=2) + "\n")
