"""Evaluates a checkpoint on a manifest's test split, beside the untouched model.

python pipeline/evaluate.py --checkpoint results/.../checkpoint.safetensors --manifest URL
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.audit import Audit, audit
from adu.backbone import BackboneConfig
from adu.checkpoint import load_checkpoint, read_card
from adu.config import StrictModel
from adu.context import Context, ContextConfig, open_context
from adu.data import DataConfig
from adu.errors import UserError
from adu.manifest import Manifest, load_manifest
from adu.methods import build_method
from adu.methods.zero_shot import ZeroShotConfig
from adu.metrics import Scores
from pipeline.command import EXIT_OK, run_command
from pipeline.plan import RESULTS, TrackingConfig, study_name
from pipeline.tracking import Tracker

SHORTCUTS = {
    "checkpoint": "checkpoint",
    "manifest": "manifest",
    "backbone": "backbone",
    "tracking.uri": "tracking-uri",
}


class EvaluateConfig(StrictModel):
    """Evaluate a trained checkpoint on the test split of a manifest."""

    checkpoint: str = Field(description="file or URL of a checkpoint")
    manifest: str = Field(description="folder or URL of the manifest to test on")
    backbone: str | None = Field(None, description="unset: the one that the checkpoint names")
    templates: tuple[str, ...] = Field(
        ("{class}", "a sketch of a {class}."), description="other captions to try"
    )
    probe_shots: int = Field(
        8, ge=1, description="training images of each domain and class for the domain probe"
    )
    tracking: TrackingConfig = TrackingConfig(uri=None)
    output: str | None = Field(None, description="file or URL for the figures as JSON")


def evaluate(config: EvaluateConfig) -> int:
    """Prints and logs what the checkpoint and the untouched model do."""
    for template in config.templates:
        if "{class}" not in template:
            raise UserError(f"templates '{template}': must contain {{class}}")
    Tracker.check(config.tracking.uri)
    whole = load_manifest(config.manifest)
    context = _load(config, whole)
    model, run = load_checkpoint(config.checkpoint, context)
    untouched_run = run.model_copy(update={"method": ZeroShotConfig()})
    untouched = build_method(untouched_run.method, context.backbone, context.task(run.forget))
    audits = {
        label: audit(each, its_run, context, whole, config.templates, config.probe_shots)
        for label, each, its_run in (
            ("zero-shot", untouched, untouched_run),
            (run.method.name, model, run),
        )
    }
    for table in _tables(audits, context, run.forget):
        Console().print(table)
    figures = {label: _figures(each) for label, each in audits.items()}
    _log(config, whole, run.forget, audits, figures)
    if config.output:
        document = {"forget": run.forget, **figures}
        storage.write_bytes(config.output, json.dumps(document, indent=2).encode())
    return EXIT_OK


def _load(config: EvaluateConfig, whole: Manifest) -> Context:
    """Loads the model, and of the manifest the classes and domains that it was trained on."""
    card = read_card(storage.read_bytes(config.checkpoint), config.checkpoint)
    trained_on = BackboneConfig.model_validate(card["backbone"])
    name = config.backbone or trained_on.name
    context = ContextConfig(
        backbone=trained_on.model_copy(update={"name": name}),
        data=DataConfig(manifest=config.manifest),
    )
    manifest = whole.select(card["classes"], card["domains"])
    # Classes or domains that it lacks are told by the checkpoint, where nothing is left at once.
    manifest = manifest if manifest.classes and manifest.domains else whole
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return open_context(context, manifest, device)


def _tables(audits: dict[str, Audit], context: Context, forget: Sequence[str]) -> list[Table]:
    return [
        _accuracy_table(audits, context, forget),
        _words_table(audits),
        _certainty_table(audits),
    ]


def _accuracy_table(audits: dict[str, Audit], context: Context, forget: Sequence[str]) -> Table:
    synthetic = " (synthetic data)" if context.manifest.synthetic else ""
    table = _table(f"Test split of {context.manifest.name}{synthetic}, %", "model")
    for name in ("Mem", "For", "H"):
        table.add_column(name, justify="right")
    for domain in context.domains:
        table.add_column(f"{domain} (forget)" if domain in forget else domain, justify="right")
    unseen = list(next(iter(audits.values())).unseen)
    for domain in unseen:
        table.add_column(f"{domain} (unseen)", justify="right")
    for label, each in audits.items():
        values = [each.scores.accuracy_by_domain[domain] for domain in context.domains]
        values += [each.unseen[domain] for domain in unseen]
        table.add_row(label, *_percent(each.scores), *(f"{100 * value:.1f}" for value in values))
    return table


def _words_table(audits: dict[str, Audit]) -> Table:
    """Whether forgetting holds in other words and for other classes."""
    table = _table("In other words, and among other classes: Mem / For / H, %", "asked with")
    for label in audits:
        table.add_column(label, justify="right")
    for template in next(iter(audits.values())).by_template:
        cells = [" / ".join(_percent(each.by_template[template])) for each in audits.values()]
        table.add_row(f"'{template}'", *cells)
    if any(each.novel for each in audits.values()):
        novel = [
            " / ".join(_percent(each.novel)) if each.novel else "-" for each in audits.values()
        ]
        table.add_row("classes not trained on", *novel)
    return table


def _certainty_table(audits: dict[str, Audit]) -> Table:
    table = _table("Certainty, and what the features tell", "")
    for label in audits:
        table.add_column(label, justify="right")
    for side in ("retain", "forget"):
        certainties = [getattr(each, side) for each in audits.values()]
        table.add_row(f"entropy, {side}, nats", *(f"{c.entropy:.2f}" for c in certainties))
        errors = (f"{100 * c.calibration_error:.1f}" for c in certainties)
        table.add_row(f"calibration error, {side}, %", *errors)
    accuracies = [each.domain_accuracy for each in audits.values()]
    if None not in accuracies:
        cells = (f"{100 * value:.1f}" for value in accuracies if value is not None)
        table.add_row("domain told by a linear probe, %", *cells)
    return table


def _table(title: str, first_column: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first_column)
    return table


def _percent(scores: Scores) -> list[str]:
    return [f"{100 * value:.1f}" for value in scores.as_dict().values()]


def _figures(result: Audit) -> dict[str, Any]:
    return {
        **result.scores.as_dict(),
        "accuracy_by_domain": result.scores.accuracy_by_domain,
        "retain": asdict(result.retain),
        "forget": asdict(result.forget),
        "domain_accuracy": result.domain_accuracy,
        "by_template": {name: scores.as_dict() for name, scores in result.by_template.items()},
        "novel_classes": result.novel.as_dict() if result.novel else None,
        "unseen_domains": result.unseen,
    }


def _log(
    config: EvaluateConfig,
    whole: Manifest,
    forget: Sequence[str],
    audits: dict[str, Audit],
    figures: dict[str, dict[str, Any]],
) -> None:
    tracker = Tracker(config.tracking.uri, RESULTS.absolute() / "evaluate", whole.name)
    for label, each in audits.items():
        tags = {
            "stage": "evaluate",
            "forget": study_name(forget),
            "method": label,
            "checkpoint": config.checkpoint,
            "synthetic": str(whole.synthetic).lower(),
        }
        name = f"{study_name(forget)}: {label}, evaluated"
        tracker.log_evaluation(name, tags, _metrics(each), figures[label], whole)


def _metrics(result: Audit) -> dict[str, float]:
    """The figures under names that MLflow takes."""
    metrics = {f"test/{name}": value for name, value in result.scores.as_dict().items()}
    by_domain = {**result.scores.accuracy_by_domain, **result.unseen}
    metrics |= {f"test/accuracy/{domain}": value for domain, value in by_domain.items()}
    for side in ("retain", "forget"):
        certainty = asdict(getattr(result, side))
        metrics |= {f"{side}/{name}": value for name, value in certainty.items()}
    if result.domain_accuracy is not None:
        metrics["domain_accuracy"] = result.domain_accuracy
    others = {f"template/{_slug(name)}": scores for name, scores in result.by_template.items()}
    if result.novel is not None:
        others["novel_classes"] = result.novel
    for prefix, scores in others.items():
        metrics |= {f"{prefix}/{name}": value for name, value in scores.as_dict().items()}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _slug(template: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", template.lower()).strip("_")


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_command(EvaluateConfig, evaluate, SHORTCUTS, argv)


if __name__ == "__main__":
    sys.exit(main())
