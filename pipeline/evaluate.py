"""Evaluates checkpoints on a manifest's test split, beside the untouched model.

python pipeline/evaluate.py --checkpoint results/.../checkpoint.safetensors --manifest URL

Several checkpoints must be of one run with different seeds: figures are means and standard
deviations then.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.config import StrictModel
from adu.context import Context
from adu.data.decoded import DataConfig
from adu.data.forget import forget_domains
from adu.data.manifest import Manifest, load_manifest
from adu.errors import UserError
from adu.evaluation.metrics import Scores
from adu.evidence.audit import Audit, audit
from adu.methods import Method, build_method
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.checkpoint import load_checkpoint, read_card
from adu.training.config import RunConfig
from pipeline.checkpoints import check_same, context_of
from pipeline.command import EXIT_OK, run_command
from pipeline.jobs.config import RESULTS
from pipeline.names import forget_name, mlflow_name
from pipeline.results.tables import mean_and_spread
from pipeline.tracking.evaluation import log_evaluation
from pipeline.tracking.server import TrackingConfig, check, server_of

SHORTCUTS = {
    "checkpoint": "checkpoint",
    "manifest": "manifest",
    "backbone": "backbone",
    "tracking.uri": "tracking-uri",
}


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


# By model: what was found, for each seed.
Audits = Mapping[str, Sequence[Audit]]


class EvaluateConfig(StrictModel):
    """Evaluate a trained checkpoint on the test split of a manifest."""

    checkpoint: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1, description="file or URL; given again: the same run with another seed"
    )
    manifest: str = Field(description="folder or URL of the manifest to test on")
    allow_uri: tuple[str, ...] = Field(
        (), description="where its images may lie beside its own places: URI prefixes"
    )
    backbone: str | None = Field(None, description="unset: the one that the checkpoint names")
    templates: tuple[str, ...] = Field(
        ("{class}", "a sketch of a {class}."), description="other captions to try"
    )
    probe_shots: int = Field(
        8, ge=1, description="training images of each domain and class for the domain probe"
    )
    tracking: TrackingConfig = TrackingConfig(uri=None)
    output: str | None = Field(
        None, description="file or URL for the figures as JSON, by model and checkpoint"
    )


def evaluate(config: EvaluateConfig) -> int:
    """Prints and logs what the checkpoint and the untouched model do."""
    for template in config.templates:
        if "{class}" not in template:
            raise UserError(f"templates '{template}': must contain {{class}}")
    whole = replace(load_manifest(config.manifest), allow_uri=config.allow_uri)
    check(config.tracking, whole.name)
    first = config.checkpoint[0]
    card = read_card(storage.read_bytes(first), first)
    data = DataConfig(manifest=config.manifest)
    context = context_of(card, whole, data, config.backbone)
    trained = [load_checkpoint(url, context) for url in config.checkpoint]
    run = trained[0][1]
    check_same(config.checkpoint, [each for _, each in trained])
    untouched_run = run.model_copy(update={"method": ZeroShotConfig()})
    untouched = build_method(untouched_run.method, context.backbone, context.task(run.forget))

    def look(model: Method, its_run: RunConfig) -> Audit:
        return audit(model, its_run, context, whole, config.templates, config.probe_shots)

    audits = {
        "zero-shot": [look(untouched, untouched_run)],
        run.method.name: [look(model, its_run) for model, its_run in trained],
    }
    for table in _tables(audits, context, run.forget):
        Console().print(table)
    if config.output:
        figures = {label: [_figures(one) for one in each] for label, each in audits.items()}
        document = {"forget": run.forget, **figures}
        storage.write_bytes(config.output, json.dumps(document, indent=2).encode())
    # Last: what it has cost is printed and written whatever becomes of the server.
    _log(config, whole, run.forget, audits)
    return EXIT_OK


def _tables(audits: Audits, context: Context, forget: Sequence[str]) -> list[Table]:
    return [
        _accuracy_table(audits, context, forget),
        _words_table(audits),
        _certainty_table(audits),
    ]


def _accuracy_table(audits: Audits, context: Context, forget: Sequence[str]) -> Table:
    synthetic = " (synthetic data)" if context.manifest.synthetic else ""
    table = _table(f"Test split of {context.manifest.name}{synthetic}, %", "model")
    for name in ("Mem", "For", "H"):
        table.add_column(name, justify="right")
    touched = forget_domains(forget, context.domains)
    for domain in context.domains:
        table.add_column(f"{domain} (forget)" if domain in touched else domain, justify="right")
    unseen = list(audits["zero-shot"][0].unseen)
    for domain in unseen:
        table.add_column(f"{domain} (unseen)", justify="right")
    for label, each in audits.items():
        cells = _percent([one.scores for one in each])
        cells += [
            mean_and_spread([100 * one.scores.accuracy_by_domain[domain] for one in each])
            for domain in context.domains
        ]
        cells += [mean_and_spread([100 * one.unseen[domain] for one in each]) for domain in unseen]
        table.add_row(label, *cells)
    return table


def _words_table(audits: Audits) -> Table:
    """Whether forgetting holds in other words and for other classes."""
    table = _table("In other words, and among other classes: Mem / For / H, %", "asked with")
    for label in audits:
        table.add_column(label, justify="right")
    for template in audits["zero-shot"][0].by_template:
        cells = (
            " / ".join(_percent([one.by_template[template] for one in each]))
            for each in audits.values()
        )
        table.add_row(f"'{template}'", *cells)
    novel = [[one.novel for one in each if one.novel] for each in audits.values()]
    if any(novel):
        cells = (" / ".join(_percent(each)) if each else "-" for each in novel)
        table.add_row("classes not trained on", *cells)
    return table


def _certainty_table(audits: Audits) -> Table:
    table = _table("Certainty, and what the features tell", "")
    for label in audits:
        table.add_column(label, justify="right")
    for side in ("retain", "forget"):
        sides = [[getattr(one, side) for one in each] for each in audits.values()]
        entropies = (mean_and_spread([one.entropy for one in each], digits=2) for each in sides)
        table.add_row(f"entropy, {side}, nats", *entropies)
        errors = (mean_and_spread([100 * one.calibration_error for one in each]) for each in sides)
        table.add_row(f"calibration error, {side}, %", *errors)
    accuracies = [[one.domain_accuracy for one in each] for each in audits.values()]
    if not any(None in each for each in accuracies):
        cells = (mean_and_spread([100 * (one or 0) for one in each]) for each in accuracies)
        table.add_row("domain told by a linear probe, %", *cells)
    return table


def _table(title: str, first_column: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first_column)
    return table


def _percent(scores: Sequence[Scores]) -> list[str]:
    return [
        mean_and_spread([100 * one.as_dict()[name] for one in scores])
        for name in ("mem", "for", "h")
    ]


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


def _log(config: EvaluateConfig, whole: Manifest, forget: Sequence[str], audits: Audits) -> None:
    server = server_of(config.tracking, RESULTS.absolute() / "evaluate")
    for label, each in audits.items():
        for checkpoint, one in zip(config.checkpoint, each, strict=False):
            tags = {
                "stage": "evaluate",
                "forget": forget_name(forget),
                "method": label,
                "checkpoint": checkpoint,
                "synthetic": str(whole.synthetic).lower(),
            }
            name = f"{forget_name(forget)}: {label}, evaluated"
            log_evaluation(server, name, tags, _metrics(one), _figures(one), whole)


def _metrics(result: Audit) -> dict[str, float]:
    """The figures under names that MLflow takes."""
    metrics = {f"test/{name}": value for name, value in result.scores.as_dict().items()}
    by_domain = {**result.scores.accuracy_by_domain, **result.unseen}
    metrics |= {
        f"test/accuracy/{mlflow_name(domain)}": value for domain, value in by_domain.items()
    }
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
