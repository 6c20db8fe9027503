"""Proves, or refutes, that checkpoints have forgotten: attacks on them and on references.

python pipeline/prove.py --checkpoint results/.../checkpoint.safetensors [--quick]

Several checkpoints must be of one run with different seeds: figures get intervals then. Each
outcome is a file in the output; the same command with the same output goes on from there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from adu import storage
from adu.config import parse_config
from adu.context import DEMO
from adu.data.decoded import DataConfig
from adu.data.manifest import load_manifest
from adu.demo.manifest import demo_manifest
from adu.evidence.bench import Outcome, Progress, run_battery
from adu.evidence.proof import Proof, ProofConfig
from adu.evidence.references import TrainedReference, never_saw, reference_run, train_reference
from adu.evidence.subject import Material
from adu.methods import Method
from adu.training.checkpoint import checkpoint_bytes, load_checkpoint, read_card
from adu.training.config import RunConfig
from pipeline.checkpoints import check_same, context_of
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, plain_console, run_and_exit, run_command
from pipeline.jobs.config import RESULTS
from pipeline.names import forget_name
from pipeline.results.evidence import (
    Evidence,
    evidence_figures,
    evidence_table,
    make_evidence,
    proof_facts,
)
from pipeline.results.evidence_page import PAGE, evidence_page, write_evidence
from pipeline.results.output import absolute_output
from pipeline.tracking.evaluation import log_evaluation
from pipeline.tracking.server import TrackingConfig, check, server_of

SHORTCUTS = {
    "checkpoint": "checkpoint",
    "manifest": "manifest",
    "backbone": "backbone",
    "never_saw": "never-saw",
    "tracking.uri": "tracking-uri",
}


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ProveConfig(ProofConfig):
    """Ask a trained checkpoint from all sides whether the domain is gone or only suppressed."""

    checkpoint: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        min_length=1, description="file or URL; given again: the same run with another seed"
    )
    manifest: str | None = Field(
        None, description="folder or URL of the manifest; unset: the one it was trained on"
    )
    allow_uri: tuple[str, ...] = Field(
        (), description="where its images may lie beside its own places: URI prefixes"
    )
    backbone: str | None = Field(None, description="unset: the one that the checkpoint names")
    never_saw: Annotated[tuple[str, ...], BeforeValidator(_one_or_many)] = Field(
        (),
        description="backbone that was pre-trained without the domain, which counts as forgotten; "
        "given again: another; unset: one with shuffled weights, which knows nothing at all",
    )
    tracking: TrackingConfig = TrackingConfig(uri=None)
    output: str | None = Field(
        None,
        description="folder or URL; unset: results/prove-DATE-TIME; one that is there is "
        "gone on with",
    )


@dataclass(frozen=True)
class Case:
    """What is to be proved.

    Attributes:
        config: The user's configuration, written out.
        place: Where outcomes are kept.
        proof: The models.
    """

    config: ProveConfig
    place: str
    proof: Proof

    @property
    def run(self) -> RunConfig:
        """What trained the first model; the others differ in the seed."""
        return self.proof.runs[0]


def prove(config: ProveConfig) -> int:
    """Runs the battery, and says what it came to; returns the exit code."""
    case = _open(config)
    check(config.tracking, case.proof.material.whole.name)
    storage.check_reachable(case.place, write=True)
    console = plain_console(sys.stdout)
    outcomes: list[Outcome] = []
    started_s = time.monotonic()
    n_run = 0
    try:
        battery = case.config.battery.attacks()
        for progress in run_battery(case.proof.contestants(), battery, case.place):
            outcomes.append(progress.outcome)
            n_run += not progress.was_there
            each_s = (time.monotonic() - started_s) / max(1, n_run)
            console.print(_told(progress, each_s * (progress.total - progress.done)))
    except KeyboardInterrupt:
        console.print(f"stopped; go on with --output {case.place}", soft_wrap=True)
        return EXIT_INTERRUPTED
    evidence = _evidence(case, outcomes)
    write_evidence(evidence, case.place)
    if config.tracking.uri is not None:
        _log(case, evidence)
    console.print(evidence_table(evidence))
    console.print(evidence.verdict, soft_wrap=True)
    console.print(f"evidence  {storage.join(case.place, PAGE)}", soft_wrap=True)
    return EXIT_OK


def _told(progress: Progress, left_s: float) -> str:
    outcome = progress.outcome
    took = "was there" if progress.was_there else f"{outcome.took_s:.1f} s"
    return (
        f"{progress.done}/{progress.total}  {outcome.label}, seed {outcome.seed}  "
        f"{outcome.attack}  {took}, about {left_s / 60:.0f} min left"
    )


def _open(config: ProveConfig) -> Case:
    """Loads the checkpoints and what they are asked with."""
    first = config.checkpoint[0]
    card = read_card(storage.read_bytes(first), first)
    url = config.manifest or str(card.data["manifest"])
    whole = demo_manifest() if url == DEMO else load_manifest(url)
    whole = replace(whole, allow_uri=config.allow_uri)
    values = {**card.data, "manifest": whole.url}
    data = parse_config(DataConfig, values, f"checkpoint {first}: card: data")
    context = context_of(card, whole, data, config.backbone)
    runs = tuple(load_checkpoint(url, context)[1] for url in config.checkpoint)
    check_same(config.checkpoint, runs)
    config = config.written_out()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    place = absolute_output(config.output or str(RESULTS / f"prove-{stamp}"))
    material = Material(context, whole, card.run.forget, config.material)
    task = context.task(card.run.forget)
    files = dict(zip((run.train.seed for run in runs), config.checkpoint, strict=True))
    proof = Proof(
        config,
        material,
        runs,
        lambda run: storage.read_bytes(files[run.train.seed]),
        partial(_trained, place, material),
        tuple(never_saw(name, context, task) for name in config.never_saw),
    )
    return Case(config, place, proof)


def _trained(place: str, material: Material, name: TrainedReference, run: RunConfig) -> Method:
    """A reference, trained now or at an earlier call."""
    file = storage.join(place, "references", f"{name}-seed-{run.train.seed}.safetensors")
    its_run, context = reference_run(name, run), material.context
    if storage.exists(file):
        card = read_card(storage.read_bytes(file), file)
        same_data = card.data == context.config.data.model_dump(mode="json")
        if card.run == its_run and same_data and card.manifest_digest == context.manifest.digest:
            return load_checkpoint(file, context)[0]
    model = train_reference(name, run, context)
    storage.write_bytes(file, checkpoint_bytes(model, its_run, context))
    return model


def _evidence(case: Case, outcomes: Sequence[Outcome]) -> Evidence:
    context, run, config = case.proof.material.context, case.run, case.config
    backbone, checkpoints = context.config.backbone.name, ", ".join(config.checkpoint)
    facts = proof_facts(context.manifest, run.forget, backbone, checkpoints, config, outcomes)
    return make_evidence(run.method.name, outcomes, config, facts)


def _log(case: Case, evidence: Evidence) -> None:
    whole = case.proof.material.whole
    server = server_of(case.config.tracking, RESULTS.absolute() / "prove")
    standing = evidence.standings[evidence.label]
    metrics = {"distance": standing.distance.mean, "kept": standing.kept.mean}
    metrics |= {f"residual/{name}": its.mean for name, its in standing.by_attack.items()}
    forget = forget_name(case.run.forget)
    tags = {
        "stage": "prove",
        "forget": forget,
        "method": evidence.label,
        "checkpoint": ", ".join(case.config.checkpoint),
        "verdict": evidence.verdict,
        "synthetic": str(whole.synthetic).lower(),
    }
    name, figures = f"{forget}: {evidence.label}, proved", evidence_figures(evidence)
    log_evaluation(server, name, tags, metrics, figures, whole, {PAGE: evidence_page(evidence)})


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(ProveConfig, prove, SHORTCUTS, arguments)


if __name__ == "__main__":
    run_and_exit(main)
