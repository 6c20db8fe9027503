"""Trains one configuration over all GPUs of a cluster with Ray Train, without a search.

python pipeline/train.py --forget sketch --manifest URL --backbone FOLDER [--method.name adu] ...
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import ray
from pydantic import Field
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.config import StrictModel
from adu.context import ContextConfig
from adu.data.forget import check_forget_set
from adu.data.manifest import Manifest
from adu.errors import UserError
from adu.methods import MethodConfig
from adu.methods.adu import AduConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import EpochReport
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, run_and_exit, run_command
from pipeline.demo_data import prepare_demo
from pipeline.executors.cluster import Cluster
from pipeline.executors.outcome_file import TestOutcome
from pipeline.executors.resources import ResourcesConfig
from pipeline.executors.run import Run
from pipeline.jobs.config import RESULTS, ForgetSet
from pipeline.jobs.finals import fixed_run, seeded_run
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED, Job
from pipeline.jobs.plan import absolute_context, open_manifest, with_split
from pipeline.names import forget_name
from pipeline.results.progress import quiet_ray
from pipeline.results.tables import mean_and_spread
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.studies.source import FixedRuns
from pipeline.tracking.facts import Facts, facts_of, fixed_facts, write_facts
from pipeline.tracking.projection import project
from pipeline.tracking.server import TrackingConfig, check, server_of
from pipeline.tracking.truth import AtWork

# What all its runs belong to.
TRAIN: Literal["train"] = "train"

SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.data.allow_uri": "allow-uri",
    "context.backbone.name": "backbone",
    "train.epochs": "epochs",
    "tracking.uri": "tracking-uri",
}


class TrainCommandConfig(StrictModel):
    """Train one configuration, test it, and keep its checkpoint."""

    context: ContextConfig = ContextConfig()
    forget: ForgetSet = Field(description="the forget domains: domain,domain,...")
    method: MethodConfig = AduConfig()
    train: TrainConfig = TrainConfig()
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="trained once with each")
    workers: int | None = Field(
        None, ge=1, description="data-parallel workers; unset: one for each GPU, or one"
    )
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores, and torch threads, of a worker")
    start_timeout_s: float = Field(600, gt=0, description="longest wait for the workers to start")
    tracking: TrackingConfig = TrackingConfig()
    output: str | None = Field(None, description="new folder; unset: results/train-DATE-TIME")
    address: str | None = Field(
        None, description="HOST:PORT of a running Ray cluster; unset: RAY_ADDRESS, else a local one"
    )


def train(config: TrainCommandConfig) -> int:
    """Trains, tests, prints a table; returns the exit code."""
    folder = _output_folder(config)
    manifest = open_manifest(config.context.data, folder.parent, prepare_demo)
    check_forget_set(config.forget, manifest.classes, manifest.domains)
    check(config.tracking, manifest.name)
    storage.check_reachable(str(folder), write=True)
    folder.mkdir(parents=True, exist_ok=True)
    with Interrupt() as interrupt, quiet_ray(folder / "ray.log") as console:
        try:
            return _run(config, manifest, folder, interrupt, console)
        except UserError:
            # Nothing has been trained yet.
            shutil.rmtree(folder)
            raise
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            ray.shutdown()


def _run(
    config: TrainCommandConfig,
    manifest: Manifest,
    folder: Path,
    interrupt: Interrupt,
    console: Console,
) -> int:
    console.print(f"results in {folder}", highlight=False, soft_wrap=True)
    log, at_work = _Log(folder, console), AtWork()
    listeners = [at_work, log]
    job = Job(config.address, lambda cluster: _resources(config, cluster), interrupt, listeners)
    context = with_split(absolute_context(config.context, manifest), manifest, str(folder))
    plain = context.model_dump(mode="json")
    runs = [
        fixed_run(TRAIN, stage, run, plain, str(folder / "runs")) for stage, run in _runs(config)
    ]
    n = job.resources.workers_per_trial
    console.print(f"starting {n} worker{'s' * (n != 1)}", highlight=False)
    job.queue.add_fixed(FixedRuns(TRAIN, runs, log.outcome))
    facts = _facts(config, manifest, folder, runs)
    write_facts(facts, str(folder))
    server = server_of(config.tracking, folder)
    projection = project(server, facts, str(folder), None, at_work, log.tell)
    try:
        failure = job.run(plain, [_runs(config)[0][1]], str(folder))
        log.write_figures()
        if failure is not None:
            log.failures.append(failure)
        if behind := projection.finish(config.tracking.end_s):
            log.failures.append(behind)
    finally:
        projection.abandon()
    for line in log.failures:
        console.print(f"failed    {line}", markup=False, highlight=False, soft_wrap=True)
    if log.outcomes:
        console.print(_table(config, manifest, log.outcomes))
    if interrupt.stop.is_set() and not log.failures:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if log.failures else EXIT_OK


def _facts(
    config: TrainCommandConfig, manifest: Manifest, folder: Path, runs: Sequence[Run]
) -> Facts:
    """What MLflow is told of it beside the figures."""
    shared = {"epochs": config.train.epochs, "shots": config.context.data.shots}
    each = [(run.stage, RunConfig.model_validate(run.config), run.outcome_file) for run in runs]
    return facts_of(
        manifest,
        str(uuid.uuid4()),
        TRAIN,
        name=f"forget {forget_name(config.forget)}",
        backbone=config.context.backbone.name,
        method=config.method.name,
        tags={"output": str(folder)},
        params={name: str(value) for name, value in shared.items()},
        fixed=fixed_facts(each, str(folder)),
    )


class _Log(RunListener):
    """Keeps what comes of the runs: in the output folder, and on the console."""

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console
        self.outcomes: list[tuple[str, int, TestOutcome]] = []
        self.failures: list[str] = []

    def tell(self, line: str) -> None:
        """Says something."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """Tells an epoch."""
        scores = "  ".join(f"{k} {100 * v:.1f}" for k, v in report.val.as_dict().items())
        self.tell(
            f"seed {run.config['train']['seed']}  epoch {report.epoch}/{report.epochs}  "
            f"loss {report.losses['total']:.3f}  val {scores}  {report.images_per_s:.0f} images/s"
        )

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """Notes why a run has failed."""
        if record.error is not None:
            self.failures.append(f"{run.stage}, seed {run.config['train']['seed']}: {record.error}")

    def outcome(self, run: Run, outcome: TestOutcome) -> None:
        """Writes a run's checkpoint."""
        seed: int = run.config["train"]["seed"]
        self.outcomes.append((run.stage, seed, outcome))
        if outcome.checkpoint is not None:
            file = self._folder / f"seed-{seed}.safetensors"
            storage.write_bytes(str(file), outcome.checkpoint)

    def write_figures(self) -> None:
        """Writes the figures of all runs."""
        figures = [
            {
                "stage": stage,
                "seed": seed,
                "test": outcome.test.scores.as_dict(),
                "accuracy_by_domain": outcome.test.scores.accuracy_by_domain,
            }
            for stage, seed, outcome in self.outcomes
        ]
        file = self._folder / "metrics.json"
        storage.write_bytes(str(file), json.dumps(figures, indent=2).encode())


def _runs(config: TrainCommandConfig) -> list[tuple[str, RunConfig]]:
    """Stages and configurations; the untouched model comes last."""
    run = RunConfig(forget=config.forget, method=config.method, train=config.train)
    zero_shot = ("zero_shot", run.model_copy(update={"method": ZeroShotConfig()}))
    if config.method.name == "zero_shot":
        return [zero_shot]
    return [*((config.method.name, seeded_run(run, seed)) for seed in config.seeds), zero_shot]


def _table(
    config: TrainCommandConfig,
    manifest: Manifest,
    outcomes: Sequence[tuple[str, int, TestOutcome]],
) -> Table:
    synthetic = " (synthetic data)" if manifest.synthetic else ""
    title = f"forget {forget_name(config.forget)}, test split of {manifest.name}{synthetic}, %"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in ("Mem", "For", "H"):
        table.add_column(name, justify="right")
    for stage in dict.fromkeys(stage for stage, _, _ in outcomes):
        scores = [o.test.scores.as_dict() for other, _, o in outcomes if other == stage]
        cells = [mean_and_spread([100 * s[key] for s in scores]) for key in ("mem", "for", "h")]
        table.add_row(stage.replace("_", "-"), *cells)
    return table


def _resources(config: TrainCommandConfig, cluster: Cluster) -> ResourcesConfig:
    n_gpus = int(sum(node.get("GPU", 0) for node in cluster.nodes))
    return ResourcesConfig(
        workers_per_trial=config.workers or max(1, n_gpus),
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=1 if n_gpus else 0,
        executors=1,
        start_timeout_s=config.start_timeout_s,
    )


def _output_folder(config: TrainCommandConfig) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = Path(config.output or RESULTS / f"train-{stamp}").absolute()
    if folder.exists():
        raise UserError(f"output {folder}: exists already; name a new folder")
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command(TrainCommandConfig, train, SHORTCUTS, arguments)


if __name__ == "__main__":
    run_and_exit(main)
