"""Trains one configuration over all GPUs of a cluster with Ray Train, without a search.

python pipeline/train.py --forget sketch --manifest URL --backbone FOLDER [--method.name adu] ...
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from adu import storage
from adu.config import StrictModel
from adu.context import ContextConfig, check_forget_set
from adu.errors import UserError
from adu.manifest import Manifest
from adu.methods import MethodConfig
from adu.methods.adu import AduConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.trainer import EpochReport, RunConfig, TrainConfig
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, run_and_exit, run_command
from pipeline.demo_data import prepare_demo
from pipeline.executors.cluster import Cluster, connect, leave
from pipeline.executors.pool import ExecutorPool, ResourcesConfig, check_runs, count_executors
from pipeline.executors.session import SESSION, TestOutcome
from pipeline.jobs.finals import FinalRun, FinalRunFailedError, run_finals
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.plan import (
    RESULTS,
    ForgetSet,
    TrackingConfig,
    absolute_context,
    open_manifest,
    study_name,
)
from pipeline.results.output import unique_name
from pipeline.results.progress import quiet_ray
from pipeline.results.tables import mean_and_spread
from pipeline.tracking.tracker import Tracker

EXIT_FAILED = 1

SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
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
    check_forget_set(config.forget, manifest.domains)
    storage.check_reachable(str(folder), write=True)
    folder.mkdir(parents=True, exist_ok=True)
    with Interrupt() as interrupt, quiet_ray(folder / "ray.log") as console:
        try:
            return _run(config, manifest, folder, interrupt, console)
        except UserError:
            # Nothing has been trained yet.
            (folder / "ray.log").unlink(missing_ok=True)
            folder.rmdir()
            raise
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            leave()


def _run(
    config: TrainCommandConfig,
    manifest: Manifest,
    folder: Path,
    interrupt: Interrupt,
    console: Console,
) -> int:
    console.print(f"results in {folder}", highlight=False, soft_wrap=True)
    cluster = connect(config.address)
    interrupt.install()
    resources = _resources(config, cluster)
    count_executors(resources, cluster.nodes)
    context = absolute_context(config.context, manifest).model_dump(mode="json")
    runs = _runs(config)
    pool = ExecutorPool(SESSION, context, resources, 1)
    try:
        pool.start()
        n = resources.workers_per_trial
        console.print(f"starting {n} worker{'s' * (n != 1)}", highlight=False)
        pool.wait_ready()
        check_runs(pool.executors, [runs[0].run.model_dump(mode="json", by_alias=True)])
        log = _Log(config, manifest, folder, console)
        with interrupt.graceful(pool.interrupt):
            try:
                outcomes = run_finals("train", runs, pool.executors, interrupt.stop, log.epoch)
            except FinalRunFailedError as error:
                console.print(f"failed    {error}", highlight=False, soft_wrap=True)
                log.end("FAILED")
                return EXIT_FAILED
        if outcomes is None:
            log.end("KILLED")
            if pool.failure is not None:
                console.print(f"failed    {pool.failure}", highlight=False, soft_wrap=True)
                return EXIT_FAILED
            return EXIT_INTERRUPTED
        log.finals(runs, outcomes)
        console.print(_table(config, manifest, runs, outcomes))
        return EXIT_OK
    finally:
        pool.close()


class _Log:
    """Keeps what comes of the runs: in MLflow, in the output folder, on the console."""

    def __init__(
        self, config: TrainCommandConfig, manifest: Manifest, folder: Path, console: Console
    ) -> None:
        self._manifest = manifest
        self._folder = folder
        self._console = console
        self._tracker = Tracker(config.tracking.uri, folder, manifest.name)
        self._tags = {
            "forget": study_name(config.forget),
            "backbone": config.context.backbone.name,
            "method": config.method.name,
            "manifest_digest": manifest.digest,
            "synthetic": str(manifest.synthetic).lower(),
        }
        shared = {"epochs": config.train.epochs, "shots": config.context.data.shots}
        name = f"forget {study_name(config.forget)}"
        self._parent = self._tracker.start_study(
            unique_name(folder), name, self._tags, shared, manifest
        )
        self._curves: dict[int, str] = {}

    def epoch(self, final: FinalRun, report: EpochReport) -> None:
        """Adds an epoch to its run's curves and tells it."""
        seed = final.run.train.seed
        if seed not in self._curves:
            name = f"{unique_name(self._folder)}/seed-{seed}"
            tags = {**self._tags, "trial_number": f"seed {seed}"}
            self._curves[seed] = self._tracker.log_trial(self._parent, name, {"seed": seed}, tags)
        self._tracker.log_epoch(self._curves[seed], report)
        scores = "  ".join(f"{k} {100 * v:.1f}" for k, v in report.val.as_dict().items())
        self._console.print(
            f"seed {seed}  epoch {report.epoch}/{report.epochs}  "
            f"loss {report.losses['total']:.3f}  val {scores}  {report.images_per_s:.0f} images/s",
            highlight=False,
        )

    def finals(self, runs: Sequence[FinalRun], outcomes: Sequence[TestOutcome]) -> None:
        """Writes checkpoints and figures, and logs them."""
        figures: list[dict[str, Any]] = []
        for final, outcome in zip(runs, outcomes, strict=True):
            seed, scores = final.run.train.seed, outcome.test.scores
            figures.append(
                {
                    "stage": final.stage,
                    "seed": seed,
                    "test": scores.as_dict(),
                    "accuracy_by_domain": scores.accuracy_by_domain,
                }
            )
            if outcome.checkpoint is not None:
                file = self._folder / f"seed-{seed}.safetensors"
                storage.write_bytes(str(file), outcome.checkpoint)
            self._tracker.log_final(
                self._parent,
                final.stage,
                final.run,
                outcome,
                self._manifest,
                self._tags,
            )
        file = self._folder / "metrics.json"
        storage.write_bytes(str(file), json.dumps(figures, indent=2).encode())
        self.end("FINISHED")

    def end(self, status: str) -> None:
        """Closes all runs."""
        for run_id in self._curves.values():
            self._tracker.end_trial(run_id, status, {})
        self._tracker.end_study(self._parent, status, {})


def _runs(config: TrainCommandConfig) -> list[FinalRun]:
    run = RunConfig(forget=config.forget, method=config.method, train=config.train)
    zero_shot = FinalRun("zero_shot", run.model_copy(update={"method": ZeroShotConfig()}))
    if config.method.name == "zero_shot":
        return [zero_shot]
    trained = [
        FinalRun(
            config.method.name,
            run.model_copy(update={"train": run.train.model_copy(update={"seed": seed})}),
        )
        for seed in config.seeds
    ]
    return [*trained, zero_shot]


def _table(
    config: TrainCommandConfig,
    manifest: Manifest,
    runs: Sequence[FinalRun],
    outcomes: Sequence[TestOutcome],
) -> Table:
    synthetic = " (synthetic data)" if manifest.synthetic else ""
    title = f"forget {study_name(config.forget)}, test split of {manifest.name}{synthetic}, %"
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for name in ("Mem", "For", "H"):
        table.add_column(name, justify="right")
    for stage in dict.fromkeys(final.stage for final in runs):
        scores = [
            outcome.test.scores.as_dict()
            for final, outcome in zip(runs, outcomes, strict=True)
            if final.stage == stage
        ]
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
