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
from pipeline.jobs.config import RESULTS, ForgetSet, TrackingConfig
from pipeline.jobs.finals import fixed_run, seeded_run
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED, Job
from pipeline.jobs.plan import absolute_context, open_manifest
from pipeline.names import forget_name
from pipeline.results.progress import quiet_ray
from pipeline.results.tables import mean_and_spread
from pipeline.studies.listener import RunListener
from pipeline.studies.records import TrialRecord
from pipeline.studies.source import FixedRuns
from pipeline.tracking.tracker import Tracker

# What all its runs belong to.
TRAIN = "train"

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
    Tracker.check(config.tracking.uri)
    folder = _output_folder(config)
    manifest = open_manifest(config.context.data, folder.parent, prepare_demo)
    check_forget_set(config.forget, manifest.classes, manifest.domains)
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
    log = _Log(config, manifest, folder, console)
    job = Job(config.address, lambda cluster: _resources(config, cluster), interrupt, [log])
    context = absolute_context(config.context, manifest).model_dump(mode="json")
    runs = [
        fixed_run(TRAIN, stage, run, context, str(folder / "runs")) for stage, run in _runs(config)
    ]
    n = job.resources.workers_per_trial
    console.print(f"starting {n} worker{'s' * (n != 1)}", highlight=False)
    job.queue.add_fixed(FixedRuns(TRAIN, runs, log.outcome))
    failure = job.run(context, [_runs(config)[0][1]], str(folder))
    shutil.rmtree(folder / "runs", ignore_errors=True)
    if failure is not None:
        log.failures.append(failure)
    for line in log.failures:
        console.print(f"failed    {line}", markup=False, highlight=False, soft_wrap=True)
    status = "FAILED" if log.failures else "KILLED" if interrupt.stop.is_set() else "FINISHED"
    log.end(status)
    if log.outcomes:
        console.print(_table(config, manifest, log.outcomes))
    return {"FAILED": EXIT_FAILED, "KILLED": EXIT_INTERRUPTED, "FINISHED": EXIT_OK}[status]


class _Log(RunListener):
    """Keeps what comes of the runs: in MLflow, in the output folder, on the console."""

    def __init__(
        self, config: TrainCommandConfig, manifest: Manifest, folder: Path, console: Console
    ) -> None:
        self._manifest = manifest
        self._folder = folder
        self._console = console
        self._tracker = Tracker(config.tracking.uri, folder, manifest.name)
        self._id = f"{folder.name}-{uuid.uuid4().hex[:8]}"
        self._tags = {
            "forget": forget_name(config.forget),
            "backbone": config.context.backbone.name,
            "method": config.method.name,
            "manifest_digest": manifest.digest,
            "synthetic": str(manifest.synthetic).lower(),
        }
        shared = {"epochs": config.train.epochs, "shots": config.context.data.shots}
        name = f"forget {forget_name(config.forget)}"
        self._parent = self._tracker.start_study(self._id, name, self._tags, shared, manifest)
        self._curves: dict[int, str] = {}
        self.outcomes: list[tuple[str, int, TestOutcome]] = []
        self.failures: list[str] = []

    def run_epoch(self, run: Run, report: EpochReport, is_news: bool) -> None:
        """Adds an epoch to its run's curves and tells it."""
        seed: int = run.config["train"]["seed"]
        if seed not in self._curves:
            tags = {**self._tags, "trial_number": f"seed {seed}"}
            name = f"{self._id}/seed-{seed}"
            self._curves[seed] = self._tracker.log_trial(self._parent, name, {"seed": seed}, tags)
        self._tracker.log_epoch(self._curves[seed], report)
        scores = "  ".join(f"{k} {100 * v:.1f}" for k, v in report.val.as_dict().items())
        self._console.print(
            f"seed {seed}  epoch {report.epoch}/{report.epochs}  "
            f"loss {report.losses['total']:.3f}  val {scores}  {report.images_per_s:.0f} images/s",
            highlight=False,
        )

    def run_ended(self, run: Run, record: TrialRecord) -> None:
        """Notes why a run has failed."""
        if record.error is not None:
            self.failures.append(f"{run.stage}, seed {run.config['train']['seed']}: {record.error}")

    def outcome(self, run: Run, outcome: TestOutcome) -> None:
        """Writes a run's checkpoint and logs its figures."""
        config = RunConfig.model_validate(run.config)
        seed = config.train.seed
        self.outcomes.append((run.stage, seed, outcome))
        if outcome.checkpoint is not None:
            file = self._folder / f"seed-{seed}.safetensors"
            storage.write_bytes(str(file), outcome.checkpoint)
        self._tracker.log_final(
            self._parent, run.stage, config, outcome, self._manifest, self._tags
        )

    def end(self, status: str) -> None:
        """Writes the figures and closes all runs."""
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
        for run_id in self._curves.values():
            self._tracker.end_trial(run_id, status, {})
        self._tracker.end_study(self._parent, status, {})


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
