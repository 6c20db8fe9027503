"""A made-up output of a search: trials in Optuna's storage, chosen configurations, outcomes."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from PIL import Image

from adu.evaluation.evaluate import TestResult
from adu.evaluation.metrics import Scores, harmonic_mean
from adu.methods.adu import AduConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.outcome_file import TestOutcome, outcome_bytes, outcome_place
from pipeline.jobs.finals import seeded_run
from pipeline.names import file_name, forget_name
from pipeline.studies.attributes import AGAIN, RECORD, SCORES, epoch_figures
from pipeline.studies.chosen import write_chosen
from pipeline.studies.records import StudyRecord, TrialRecord, write_study_record
from pipeline.studies.storage import open_storage
from pipeline.tracking.facts import Facts, StudyFacts, write_facts
from pipeline.tracking.truth import Truth
from pipeline.tracking.wanted import EVIDENCE

DOMAINS = ("clipart", "photo", "sketch")
EPOCHS = 2
SEEDS = (1, 2)
AGAIN_SEED = 1000
GAMMA = optuna.distributions.FloatDistribution(0.1, 30, log=True)
N_CTX = optuna.distributions.CategoricalDistribution((2, 4, 8))


def scores(h: float, domains: Sequence[str] = DOMAINS) -> Scores:
    by_domain = dict.fromkeys(domains, 0.5 + h / 4)
    return Scores(0.9, h, harmonic_mean(0.9, h), by_domain, dict.fromkeys(domains, 10))


def report(epoch: int, h: float, domains: Sequence[str] = DOMAINS) -> EpochReport:
    losses = {"total": 1.0 / epoch, "retain": 0.1}
    return EpochReport(epoch, EPOCHS, 0.01, losses, scores(h, domains), 2.0, 0.5, 64.0)


def facts_of(folder: Path, forgets: Sequence[tuple[str, ...]], **changes: Any) -> Facts:
    studies = [
        StudyFacts(
            forget=forget,
            stored_name=forget_name(forget),
            record=f"studies/{file_name(forget_name(forget))}.json",
            folder=f"studies/{file_name(forget_name(forget))}",
            outcomes=f"studies/{file_name(forget_name(forget))}/finals",
        )
        for forget in forgets
    ]
    known = {
        "id": "8a7b8a6e-0000-4000-8000-000000000001",
        "kind": "search",
        "name": "made-up",
        "data_set": "made-up",
        "digest": "d" * 64,
        "manifest": "/nowhere/manifest",
        "synthetic": True,
        "domains": DOMAINS,
        "classes": ("cup", "fish"),
        "backbone": "demo",
        "method": "adu",
        "tags": {"output": str(folder), "trials": "3", "sampler": "tpe"},
        "params": {"epochs": str(EPOCHS), "shots": "2"},
        "origin": {"mlflow.user": "somebody"},
        "studies": studies,
    }
    return Facts.model_validate({**known, **changes})


def search_output(
    folder: Path,
    forgets: Sequence[tuple[str, ...]] = (("sketch",),),
    trials: int = 3,
    best_h: float = 0.8,
    checkpoint: bytes = b"weights",
    storage: BaseStorage | None = None,
    proof: dict[str, Any] | None = None,
    again_h: float | None = None,
    **changes: Any,
) -> Truth:
    """Writes a finished search; its last trial has failed, the one before was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = facts_of(folder, forgets, **changes)
    stored = storage or open_storage(None, folder / "optuna.journal")
    for study in facts.studies:
        records = write_trials(stored, study.stored_name, trials, facts.domains)
        write_finals(folder, study, best_h, checkpoint, facts.domains, again_h)
        best = max(records, key=lambda each: each.val.h if each.val else 0)
        record = StudyRecord(study.forget, records, best, {}, complete=True, proof=proof or {})
        write_study_record(record, str(folder / study.record))
        for name in EVIDENCE if proof else ():
            (folder / study.folder / name).write_text("found")
        (folder / study.folder / "features.png").write_bytes(picture())
    write_facts(facts, str(folder))
    return Truth(facts, str(folder), stored)


def picture() -> bytes:
    """Noise, which no file format makes small."""
    pixels = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_trials(
    stored: BaseStorage, name: str, n: int, domains: Sequence[str] = DOMAINS
) -> list[TrialRecord]:
    study = optuna.create_study(storage=stored, study_name=name, direction="maximize")
    records = []
    for number in range(n):
        # The same ones every time.
        values = {"method.gamma": 0.5 + number, "method.n_ctx": (2, 4, 8)[number % 3]}
        study.enqueue_trial(values)
        trial = study.ask({"method.gamma": GAMMA, "method.n_ctx": N_CTX})
        state = {n - 1: "failed", n - 2: "stopped"}.get(number, "complete")
        n_epochs = {"failed": 0, "stopped": 1}.get(state, EPOCHS)
        for epoch in range(1, n_epochs + 1):
            look = report(epoch, 0.3 + 0.1 * epoch + 0.01 * (number % 20), domains)
            trial.report(look.val.h, epoch)
            trial.set_user_attr(f"{SCORES}{epoch}", epoch_figures(look))
        val = look.val if n_epochs else None
        error = None if n_epochs else "ValueError: boom"
        record = TrialRecord(number, dict(trial.params), n_epochs, state, val, 3.0, 2.0, error)
        trial.set_user_attr(RECORD, json.dumps(asdict(record)))
        end = {"failed": optuna.trial.TrialState.FAIL, "stopped": optuna.trial.TrialState.PRUNED}
        study.tell(trial, record.val.h if state == "complete" else None, state=end.get(state))
        records.append(record)
    study.set_user_attr(f"{AGAIN}0, 1000", scores(0.5).as_dict())
    return records


def final_runs(forget: tuple[str, ...], again: bool = False) -> list[tuple[str, RunConfig]]:
    paper = RunConfig(forget=forget, method=AduConfig())
    stages = {
        "best": RunConfig(forget=forget, method=AduConfig(gamma=3.0)),
        "paper_defaults": paper,
    }
    runs = [(stage, run) for stage, run in stages.items() for _ in SEEDS]
    seeds = SEEDS * len(stages)
    seeded = [
        (stage, seeded_run(run, seed)) for (stage, run), seed in zip(runs, seeds, strict=True)
    ]
    seeded += [("best_again", seeded_run(stages["best"], AGAIN_SEED))] * again
    return [*seeded, ("zero_shot", paper.model_copy(update={"method": ZeroShotConfig()}))]


def write_finals(
    folder: Path,
    study: StudyFacts,
    best_h: float,
    checkpoint: bytes,
    domains: Sequence[str] = DOMAINS,
    again_h: float | None = None,
) -> None:
    runs = final_runs(study.forget, again_h is not None)
    h_by_stage = {"best": best_h, "paper_defaults": 0.6, "zero_shot": 0.1}
    write_chosen(str(folder / study.folder), runs, {"data": {"shots": 2}})
    for number, (stage, run) in enumerate(runs):
        h = again_h if stage == "best_again" else h_by_stage[stage] + number / 100
        made = outcome(h, checkpoint if stage != "zero_shot" else None, domains)
        place = Path(f"{outcome_place(str(folder / study.outcomes), run)}.npz")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(outcome_bytes(run, made))


def outcome(h: float, checkpoint: bytes | None, domains: Sequence[str] = DOMAINS) -> TestOutcome:
    features = np.zeros((2, 4), np.float32)
    counts, numbers = np.zeros((2, 1, 1), int), np.array([0, 1])
    test = TestResult(scores(h, domains), counts, features, numbers, numbers, 1.0)
    made = TestOutcome(scores(h, domains), test, 0.7, checkpoint, None, 1000.0, 1060.5)
    if checkpoint is None:
        return made
    return replace(made, epochs=tuple(asdict(report(n, h, domains)) for n in (1, 2)))
