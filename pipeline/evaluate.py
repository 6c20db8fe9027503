"""Evaluates a checkpoint on a manifest's test split, beside the untouched model.

python pipeline/evaluate.py --checkpoint results/.../checkpoint.safetensors --manifest URL
"""

from __future__ import annotations

import json
import sys

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.backbone import BackboneConfig
from adu.checkpoint import load_checkpoint, read_card
from adu.config import StrictModel
from adu.context import Context, ContextConfig, load_context
from adu.data import DataConfig
from adu.evaluate import TestResult, evaluate_test
from adu.methods import build_method
from adu.methods.zero_shot import ZeroShotConfig
from pipeline.command import EXIT_OK, run_command

SHORTCUTS = {"checkpoint": "checkpoint", "manifest": "manifest", "backbone": "backbone"}


class EvaluateConfig(StrictModel):
    """Evaluate a trained checkpoint on the test split of a manifest."""

    checkpoint: str = Field(description="file or URL of a checkpoint written by a search")
    manifest: str = Field(description="folder or URL of the manifest to test on")
    backbone: str | None = Field(None, description="unset: the one that the checkpoint names")
    output: str | None = Field(None, description="file or URL for the figures as JSON")


def evaluate(config: EvaluateConfig) -> int:
    """Prints the scores of the checkpoint and of the untouched model."""
    context = _load(config)
    model, run = load_checkpoint(config.checkpoint, context)
    zero_shot = build_method(ZeroShotConfig(), context.backbone, context.task(run.forget))
    results = {
        "zero-shot": evaluate_test(zero_shot, context, run.forget),
        run.method.name: evaluate_test(model, context, run.forget),
    }
    Console().print(_table(results, context, run.forget))
    if config.output:
        figures: dict[str, object] = {"forget": run.forget}
        figures |= {name: _figures(result) for name, result in results.items()}
        storage.write_bytes(config.output, json.dumps(figures, indent=2).encode())
    return EXIT_OK


def _load(config: EvaluateConfig) -> Context:
    card = read_card(storage.read_bytes(config.checkpoint), config.checkpoint)
    trained_on = BackboneConfig.model_validate(card["backbone"])
    name = config.backbone or trained_on.name
    context = ContextConfig(
        backbone=trained_on.model_copy(update={"name": name}),
        data=DataConfig(manifest=config.manifest),
    )
    return load_context(context, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _table(results: dict[str, TestResult], context: Context, forget: tuple[str, ...]) -> Table:
    synthetic = " (synthetic data)" if context.manifest.synthetic else ""
    table = Table(title=f"Test split of {context.manifest.name}{synthetic}, %")
    table.add_column("model")
    for name in ("Mem", "For", "H"):
        table.add_column(name, justify="right")
    for domain in context.domains:
        table.add_column(f"{domain} (forget)" if domain in forget else domain, justify="right")
    for name, result in results.items():
        scores = result.scores
        values = [scores.mem, scores.for_, scores.h]
        values += [scores.accuracy_by_domain[domain] for domain in context.domains]
        table.add_row(name, *(f"{100 * value:.1f}" for value in values))
    return table


def _figures(result: TestResult) -> dict[str, object]:
    by_domain = result.scores.accuracy_by_domain
    return {**result.scores.as_dict(), "accuracy_by_domain": by_domain}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_command(EvaluateConfig, evaluate, SHORTCUTS, argv)


if __name__ == "__main__":
    sys.exit(main())
