"""MLflow's runs of configurations that were known beforehand: final runs, rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import yaml

from adu.training.config import RunConfig
from adu.training.trainer import EpochReport
from pipeline.executors.outcome_file import TestOutcome
from pipeline.executors.session import epoch_report
from pipeline.names import forget_name, mlflow_name
from pipeline.studies.attributes import epoch_figures
from pipeline.studies.records import METHOD_LABELS, run_label
from pipeline.tracking.facts import Facts
from pipeline.tracking.wanted import (
    Metric,
    WantedFile,
    WantedRun,
    common_tags,
    curve,
    run_key,
    text_of,
)


@dataclass(frozen=True)
class SeedRun:
    """A tested run of a configuration with a seed.

    Attributes:
        stage: What it stands for.
        config: Its configuration.
        outcome: What came of it; None if nothing has yet.
        file: Where the outcome is.
        epochs: The reports so far, where there is no outcome.
        began_ms: When it began, as the command that is at work has seen it: its points are written
            with the same times before and after it has come to its outcome.
        checkpoint: Gives what was trained; None if nothing was.
    """

    stage: str
    config: RunConfig
    outcome: TestOutcome | None
    file: str
    epochs: Sequence[EpochReport] = ()
    began_ms: int | None = None
    checkpoint: Callable[[], bytes] | None = None


def configuration_runs(
    facts: Facts, parent: str, seeds: Sequence[SeedRun], unfinished: str
) -> list[WantedRun]:
    """The runs of fixed configurations: each with a run a seed below it.

    Args:
        facts: Of the output.
        parent: Key of the run that they are below.
        seeds: All seeds of all configurations.
        unfinished: The status of what has not come to its end.
    """
    groups: dict[tuple[str, str], list[SeedRun]] = {}
    for each in seeds:
        groups.setdefault((each.stage, forget_name(each.config.forget)), []).append(each)
    found: list[WantedRun] = []
    for (stage, forget), group in groups.items():
        below = [each for each in group if each.outcome is not None or each.epochs]
        if not below:
            continue
        key, config = run_key(parent, stage, forget), group[0].config
        name = f"{forget}: {METHOD_LABELS.get(stage, run_label(stage, config))}"
        tags = {
            **common_tags(facts, config.forget),
            "stage": text_of(stage),
            "method": config.method.name,
        }
        runs = [_seed_run(key, name, tags, each, unfinished) for each in below]
        found += [_configuration(key, parent, name, tags, group, runs, unfinished), *runs]
    return found


def _configuration(
    key: str,
    parent: str,
    name: str,
    tags: Mapping[str, str],
    group: Sequence[SeedRun],
    runs: Sequence[WantedRun],
    unfinished: str,
) -> WantedRun:
    """A configuration: means over its seeds, once all of them are there."""
    outcomes = [each.outcome for each in group if each.outcome is not None]
    is_over = len(outcomes) == len(group)
    closed = is_over or unfinished not in ("RUNNING", "SCHEDULED")
    ends_ms = [run.ended_ms or run.began_ms or 0 for run in runs]
    points: list[Metric] = []
    if closed and outcomes:
        by_name = [metrics_of_test(outcome) for outcome in outcomes]
        n, at_ms = len(outcomes), max(ends_ms)
        for metric in by_name[0]:
            values = [each[metric] for each in by_name]
            points.append((metric, mean(values), at_ms, n))
            if n > 1 and metric in ("test/mem", "test/for", "test/h"):
                points.append((f"{metric}_std", stdev(values), at_ms, n))
    return WantedRun(
        key,
        parent,
        name,
        "FINISHED" if is_over else unfinished,
        {**tags, "level": "configuration", "seeds": str(len(outcomes))},
        {k: v for k, v in _params(group[0].config).items() if k != "seed"},
        tuple(points),
        min((run.began_ms or 0 for run in runs), default=0) or None,
        max(ends_ms) or None if closed else None,
    )


def _seed_run(
    configuration: str, name: str, tags: Mapping[str, str], seed: SeedRun, unfinished: str
) -> WantedRun:
    outcome, config = seed.outcome, seed.config
    reports = seed.epochs if outcome is None else map(epoch_report, outcome.epochs)
    began_ms = int(1000 * (outcome.began_s or 0)) if outcome else seed.began_ms or 0
    epochs = {report.epoch: epoch_figures(report) for report in reports}
    points, last_ms = curve(epochs, seed.began_ms or began_ms)
    ended_ms = int(1000 * (outcome.ended_s or 0)) if outcome else last_ms
    text = yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)
    files = {"config.yaml": WantedFile(text, text.encode)}
    if outcome is not None:
        points += [(k, v, ended_ms, 0) for k, v in metrics_of_test(outcome).items()]
        if seed.checkpoint is not None:
            files["checkpoint.safetensors"] = WantedFile(
                seed.file.rsplit("/", 1)[-1], seed.checkpoint
            )
    return WantedRun(
        run_key(configuration, config.train.seed),
        configuration,
        f"{name}, seed {config.train.seed}",
        "FINISHED" if outcome is not None else unfinished,
        {**tags, "level": "seed"},
        _params(config),
        tuple(points),
        began_ms or None,
        ended_ms or None,
        "test",
        files,
    )


def _params(config: RunConfig) -> dict[str, str]:
    values = config.model_dump(mode="json", by_alias=True)
    shared = {**values["method"], **values["train"], "method": config.method.name}
    del shared["name"]
    return {name: text_of(value) for name, value in shared.items() if value is not None}


def metrics_of_test(outcome: TestOutcome) -> dict[str, float]:
    """A test result as MLflow's metrics."""
    scores = outcome.test.scores
    metrics = {f"test/{name}": value for name, value in scores.as_dict().items()}
    for domain, value in scores.accuracy_by_domain.items():
        metrics[f"test/accuracy/{mlflow_name(domain)}"] = value
    return {**metrics, "test/domain_accuracy": outcome.domain_accuracy}
