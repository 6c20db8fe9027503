"""Proves, or refutes, that checkpoints have forgotten: attacks on them and on references.

python pipeline/prove.py --checkpoint results/.../checkpoint.safetensors [--quick]

Several checkpoints must be of one run with different seeds: figures get intervals then. Each
outcome is a file in the output; the same command with the same output goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from adu import storage
from adu.config import StrictModel, parse_config
from adu.context import DEMO, Context
from adu.data.decoded import DataConfig
from adu.data.manifest import Manifest, load_manifest
from adu.demo.manifest import demo_manifest
from adu.evidence.attacks import BatteryConfig
from adu.evidence.bench import Contestant, Outcome, Progress, run_battery
from adu.evidence.references import (
    KNOWS_NOTHING,
    NEVER_SAW,
    NEVER_SHOWN,
    UNTOUCHED,
    TrainedReference,
    knows_nothing,
    never_saw,
    reference_run,
    train_reference,
    untouched,
)
from adu.evidence.subject import Material, MaterialConfig, Subject
from adu.evidence.verdict import standings, verdict
from adu.methods import Method
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.checkpoint import checkpoint_bytes, load_checkpoint, read_card
from adu.training.config import RunConfig
from pipeline.checkpoints import check_same, context_of
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, plain_console, run_and_exit, run_command
from pipeline.evidence_page import Evidence, evidence_figures, evidence_page, evidence_table
from pipeline.jobs.config import RESULTS
from pipeline.names import forget_name
from pipeline.results.output import absolute_output
from pipeline.tracking.evaluation import log_evaluation
from pipeline.tracking.server import TrackingConfig, check, server_of

PAGE = "evidence.html"
FIGURES = "evidence.json"

SHORTCUTS = {
    "checkpoint": "checkpoint",
    "manifest": "manifest",
    "backbone": "backbone",
    "never_saw": "never-saw",
    "tracking.uri": "tracking-uri",
}

# Test images of each domain and class with --quick.
QUICK_TEST_PER_CELL = 10


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ProveConfig(StrictModel):
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
    references: tuple[TrainedReference, ...] = Field(
        ("never_shown", "baseline", "forget_only"), description="trained for comparison"
    )
    quick: bool = Field(False, description="fewer images, variants and references")
    battery: BatteryConfig = BatteryConfig()
    material: MaterialConfig = MaterialConfig()
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
        config: The user's configuration, with --quick written out.
        place: Where outcomes are kept.
        trained: The checkpoints' models, with what trained them.
        material: What they are asked with.
        never_saw: Models that were pre-trained without what is forgotten.
    """

    config: ProveConfig
    place: str
    trained: tuple[tuple[Method, RunConfig], ...]
    material: Material
    never_saw: tuple[Method, ...]

    @property
    def run(self) -> RunConfig:
        """What trained the first model; the others differ in the seed."""
        return self.trained[0][1]

    @property
    def context(self) -> Context:
        """Model and data."""
        return self.material.context


def prove(config: ProveConfig) -> int:
    """Runs the battery, and says what it came to; returns the exit code."""
    case = _open(config)
    check(config.tracking, case.material.whole.name)
    storage.check_reachable(case.place, write=True)
    console = plain_console(sys.stdout)
    outcomes: list[Outcome] = []
    started_s = time.monotonic()
    n_run = 0
    try:
        battery = case.config.battery.attacks()
        for progress in run_battery(_contestants(case), battery, case.place):
            outcomes.append(progress.outcome)
            n_run += not progress.was_there
            each_s = (time.monotonic() - started_s) / max(1, n_run)
            console.print(_told(progress, each_s * (progress.total - progress.done)))
    except KeyboardInterrupt:
        console.print(f"stopped; go on with --output {case.place}", soft_wrap=True)
        return EXIT_INTERRUPTED
    evidence = _evidence(case, outcomes, time.monotonic() - started_s)
    page = evidence_page(evidence)
    storage.write_bytes(storage.join(case.place, PAGE), page.encode())
    figures = evidence_figures(evidence)
    document = json.dumps(figures, indent=2)
    storage.write_bytes(storage.join(case.place, FIGURES), document.encode())
    if config.tracking.uri is not None:
        _log(case, evidence, figures, page)
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
    trained = tuple(load_checkpoint(url, context) for url in config.checkpoint)
    check_same(config.checkpoint, [run for _, run in trained])
    if config.quick:
        config = _quick(config)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    place = absolute_output(config.output or str(RESULTS / f"prove-{stamp}"))
    material = Material(context, whole, card.run.forget, config.material)
    task = context.task(card.run.forget)
    models = tuple(never_saw(name, context, task) for name in config.never_saw)
    return Case(config, place, trained, material, models)


def _quick(config: ProveConfig) -> ProveConfig:
    """The same with fewer of everything, but for what was asked for."""
    changes: dict[str, Any] = {"battery": config.battery.quick()}
    if "references" not in config.model_fields_set:
        changes["references"] = (NEVER_SHOWN,)
    if "test_per_cell" not in config.material.model_fields_set:
        fewer = {"test_per_cell": QUICK_TEST_PER_CELL}
        changes["material"] = config.material.model_copy(update=fewer)
    return config.model_copy(update=changes)


def _contestants(case: Case) -> list[Contestant]:
    """All models, the ends of the scale first."""
    task = case.context.task(case.run.forget)
    bare = case.run.model_copy(update={"method": ZeroShotConfig()})
    backbone = case.context.backbone

    def one(label: str, seed: int, what: str, load: Callable[[], Method]) -> Contestant:
        def subject() -> Subject:
            return Subject(label, seed, bare, load(), case.material)

        return Contestant(label, seed, _identity(case, what), subject)

    found = [one(UNTOUCHED, 0, UNTOUCHED, lambda: untouched(backbone, task))]
    for seed, model in enumerate(case.never_saw):
        fingerprint = model.backbone.fingerprint
        found.append(one(NEVER_SAW, seed, fingerprint, partial(_itself, model)))
    if not case.never_saw:
        found.append(
            one(KNOWS_NOTHING, 0, KNOWS_NOTHING, lambda: knows_nothing(backbone, task, seed=0))
        )
    for (model, run), checkpoint in zip(case.trained, case.config.checkpoint, strict=True):
        found += [_reference(case, name, run) for name in _references(case)]
        found.append(_model(case, model, run, checkpoint))
    return found


def _itself(model: Method) -> Method:
    return model


def _references(case: Case) -> list[TrainedReference]:
    """Those that are another model than the one in question."""
    return [name for name in case.config.references if name != case.run.method.name]


def _reference(case: Case, name: TrainedReference, run: RunConfig) -> Contestant:
    def subject() -> Subject:
        its_run = reference_run(name, run)
        return Subject(name, run.train.seed, its_run, _trained(case, name, run), case.material)

    identity = _identity(case, f"{name} {reference_run(name, run).model_dump_json()}")
    return Contestant(name, run.train.seed, identity, subject)


def _model(case: Case, model: Method, run: RunConfig, checkpoint: str) -> Contestant:
    with_reference = NEVER_SHOWN in case.config.references

    def subject() -> Subject:
        reference = _trained(case, NEVER_SHOWN, run) if with_reference else None
        return Subject(run.method.name, run.train.seed, run, model, case.material, reference)

    digest = hashlib.sha256(storage.read_bytes(checkpoint)).hexdigest()
    identity = _identity(case, f"{digest} {with_reference}")
    return Contestant(run.method.name, run.train.seed, identity, subject)


def _identity(case: Case, what: str) -> str:
    context = case.context
    asked = (case.material.config.model_dump_json(), context.config.data.model_dump_json())
    return " ".join((what, context.backbone.fingerprint, context.manifest.digest, *asked))


def _trained(case: Case, name: TrainedReference, run: RunConfig) -> Method:
    """A reference, trained now or at an earlier call."""
    file = storage.join(case.place, "references", f"{name}-seed-{run.train.seed}.safetensors")
    its_run, context = reference_run(name, run), case.context
    if storage.exists(file):
        card = read_card(storage.read_bytes(file), file)
        same_data = card.data == context.config.data.model_dump(mode="json")
        if card.run == its_run and same_data and card.manifest_digest == context.manifest.digest:
            return load_checkpoint(file, context)[0]
    model = train_reference(name, run, context)
    storage.write_bytes(file, checkpoint_bytes(model, its_run, context))
    return model


def _evidence(case: Case, outcomes: Sequence[Outcome], took_s: float) -> Evidence:
    titles = {name: attack.title for name, attack in case.config.battery.attacks().items()}
    standing = standings(outcomes)
    label = case.run.method.name
    sentence = verdict(standing[label], standing[UNTOUCHED], titles)
    whole: Manifest = case.material.whole
    facts = {
        "data set": f"{whole.name}, manifest {whole.digest[:12]}"
        + (" (synthetic data)" if whole.synthetic else ""),
        "forget": forget_name(case.run.forget),
        "backbone": case.context.config.backbone.name,
        "checkpoints": ", ".join(case.config.checkpoint),
        "images": f"{len(case.material.test)} test images; an attacker has up to "
        f"{case.material.config.fresh_per_cell} of each class that were not trained on",
        "time": f"{took_s:.0f} s now; {sum(o.took_s for o in outcomes):.0f} s of attacks in all",
    }
    others = [name for name in standing if name != label]
    ordered = {name: standing[name] for name in (label, *others)}
    attacks = case.config.battery.attacks()
    return Evidence(label, sentence, ordered, tuple(outcomes), attacks, facts, case.config.quick)


def _log(case: Case, evidence: Evidence, figures: dict[str, Any], page: str) -> None:
    whole = case.material.whole
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
    name = f"{forget}: {evidence.label}, proved"
    log_evaluation(server, name, tags, metrics, figures, whole, {PAGE: page})


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(ProveConfig, prove, SHORTCUTS, arguments)


if __name__ == "__main__":
    run_and_exit(main)
