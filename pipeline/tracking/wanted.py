"""What MLflow should hold of an output, out of Optuna's storage and the files that runs leave.

A parent run a study (or one for a table, or for what ``train.py`` has trained), below it a run a
configuration, and below that one a seed. Metrics are a function of what was found, and not of when
it is asked for: after every outage MLflow comes to the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from statistics import mean, stdev
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from adu import storage
from pipeline.names import forget_name, mlflow_name
from pipeline.studies.attributes import (
    ACCURACY,
    RECORD,
    figures_of,
    stored_epochs,
    stored_record,
)
from pipeline.studies.records import TrialRecord
from pipeline.tracking.facts import Facts

# TrialRecord's states in MLflow's words.
STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

# Characters of a tag or parameter that every server takes.
MAX_VALUE = 5000

# The page and the figures of a proof.
EVIDENCE = ("evidence.html", "evidence.json")

Metric = tuple[str, float, int, int]


@dataclass(frozen=True)
class WantedFile:
    """An artifact.

    Attributes:
        version: Differs where its content does.
        read: Gives it.
    """

    version: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class WantedRun:
    """A run as it should be.

    Attributes:
        key: Unique in the output.
        parent: The key of the run that it is below; None for none.
        name: As the UI shows it.
        status: MLflow's word.
        tags: What a person filters by.
        params: Its parameters.
        metrics: Name, value, time in ms and step of each point.
        began_ms: When it began; None for now.
        ended_ms: When it ended.
        split: Which images it has seen, as MLflow's data set: ``train`` or ``test``.
        files: Artifacts by path.
    """

    key: str
    parent: str | None
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    began_ms: int | None = None
    ended_ms: int | None = None
    split: str | None = None
    files: Mapping[str, WantedFile] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for runs that hold the same; times do not count, nor the status."""
        files = {path: file.version for path, file in self.files.items()}
        points = sorted((name, repr(value), step) for name, value, _, step in self.metrics)
        held = [self.name, self.tags, self.params, points, self.split, files]
        return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()[:32]


def study_files(folder: str) -> dict[str, WantedFile]:
    """What of a finished study's folder is an artifact: its pictures, and its proof if it has one.

    Args:
        folder: Folder or URL.
    """
    files = {}
    for name in storage.names_in(folder):
        if name.endswith(".png") or name in EVIDENCE:
            file = storage.join(folder, name)
            path = name if name in EVIDENCE else f"pictures/{name}"
            size = str(storage.size_bytes(file))
            files[path] = WantedFile(size, partial(storage.read_bytes, file))
    return files


def run_key(*parts: object) -> str:
    """A run's key: no two lists of parts come to the same."""
    return json.dumps(parts, ensure_ascii=True)


def text_of(value: Any) -> str:
    """A value as a tag or parameter; what is too long ends in a hash of the whole."""
    text = str(value)
    if len(text) <= MAX_VALUE:
        return text
    return f"{text[: MAX_VALUE - 20]}... {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def short_name(path: str) -> str:
    """A parameter's name in MLflow: ``gamma`` rather than ``method.gamma``."""
    return path.rsplit(".", 1)[-1]


def common_tags(facts: Facts, forget: Sequence[str]) -> dict[str, str]:
    """Tags of every run below a forget set."""
    tags = {
        "search": facts.name,
        "search_id": facts.id,
        "backbone": facts.backbone,
        "manifest_digest": facts.digest,
        "synthetic": str(facts.synthetic).lower(),
    }
    if forget:
        tags["forget"] = text_of(forget_name(forget))
    return tags


def domain_tags(facts: Facts) -> dict[str, str]:
    """True names of domains by those that metrics have of them: MLflow's names hold less."""
    odd = {mlflow_name(domain): domain for domain in facts.domains if mlflow_name(domain) != domain}
    return {f"domain.{short}": text_of(domain) for short, domain in odd.items()}


def trial_runs(
    facts: Facts, forget: Sequence[str], trial: FrozenTrial, again: Mapping[int, Any], live: bool
) -> list[WantedRun]:
    """The run of a trial, and one for each further seed of its configuration.

    Args:
        facts: Of the output.
        forget: The forget domains.
        trial: As Optuna has it.
        again: Validation scores with further seeds, by seed.
        live: Whether the search is at work.

    Returns:
        None of a trial that has not begun.
    """
    epochs = stored_epochs(trial.user_attrs)
    record = stored_record(trial) if RECORD in trial.user_attrs else None
    if record is None and trial.state == TrialState.WAITING and not epochs:
        return []
    name = forget_name(forget)
    key, label = run_key(name, "trial", trial.number), f"{name}: trial {trial.number}"
    tags = {
        **common_tags(facts, forget),
        "stage": "trial",
        "level": "configuration",
        "method": facts.method,
        "trial_number": str(trial.number),
    }
    params = trial.params if record is None else record.params
    began_ms = int(1000 * trial.datetime_start.timestamp()) if trial.datetime_start else 0
    points, last_ms = curve(epochs, began_ms)
    status = _trial_status(trial, record, live)
    is_over = status not in ("RUNNING", "SCHEDULED")
    if record is not None:
        points += _closing(record, again, last_ms)
    run = WantedRun(
        key,
        run_key(name),
        label,
        status,
        {**tags, **({"error": text_of(record.error)} if record and record.error else {})},
        {short_name(path): text_of(value) for path, value in params.items()},
        tuple(points),
        began_ms or None,
        last_ms if is_over else None,
    )
    return [run, *_further_seeds(run, again, last_ms)]


def _trial_status(trial: FrozenTrial, record: TrialRecord | None, live: bool) -> str:
    if record is not None:
        return STATUS[record.state]
    if not live:
        return "KILLED"
    return "RUNNING" if trial.state == TrialState.RUNNING else "SCHEDULED"


def curve(epochs: Mapping[int, Mapping[str, float]], began_ms: int) -> tuple[list[Metric], int]:
    """Points of all epochs, and when the last one ended."""
    points: list[Metric] = []
    at_ms = began_ms
    for epoch, figures in sorted(epochs.items()):
        at_ms += int(1000 * figures.get("epoch_s", 0))
        points += [(_metric_name(name), value, at_ms, epoch) for name, value in figures.items()]
    return points, at_ms


def _metric_name(figure: str) -> str:
    if figure.startswith(ACCURACY):
        return f"val/{ACCURACY}{mlflow_name(figure.removeprefix(ACCURACY))}"
    return f"val/{figure}" if figure in ("mem", "for", "h", "distance") else figure


def _closing(record: TrialRecord, again: Mapping[int, Any], at_ms: int) -> list[Metric]:
    points: list[Metric] = [
        ("epochs_done", float(record.epochs_done), at_ms, 0),
        ("wall_s", record.wall_s, at_ms, 0),
    ]
    looks = [record.val.h] if record.val else []
    for _, scores in sorted(again.items()):
        looks.append(scores.h)
        n = len(looks)
        if n > 1:
            points += [("seeds/n", float(n), at_ms, n), ("seeds/h_mean", mean(looks), at_ms, n)]
            points.append(("seeds/h_std", stdev(looks), at_ms, n))
    return points


def _further_seeds(run: WantedRun, again: Mapping[int, Any], at_ms: int) -> list[WantedRun]:
    return [
        WantedRun(
            run_key(run.key, seed),
            run.key,
            f"{run.name}, seed {seed}",
            "FINISHED",
            {**run.tags, "level": "seed"},
            {**run.params, "seed": str(seed)},
            tuple((_metric_name(k), v, at_ms, 0) for k, v in figures_of(scores).items()),
            at_ms or None,
            at_ms or None,
        )
        for seed, scores in sorted(again.items())
    ]
