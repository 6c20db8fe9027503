"""What a trial costs beside its training: on a warm executor, and with a worker group of its own.

    python -m tests.benchmarks.trial_overhead

Both train the same runs of the demo on a cluster of this machine. Prints the seconds that a run
takes beyond its training loop, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import ray

from adu.context import ContextConfig
from adu.data import DataConfig
from adu.methods.adu import AduConfig
from adu.trainer import RunConfig, TrainConfig
from pipeline.demo_data import prepare_demo
from pipeline.executors.cluster import connect
from pipeline.executors.mailbox import Command
from pipeline.executors.pool import ExecutorPool, ResourcesConfig
from pipeline.executors.session import SESSION, epoch_report
from pipeline.results.progress import quiet_ray

DOMAIN = "sketch"


def overhead_s(pool: ExecutorPool, name: str, epochs: int) -> float:
    """Runs one training run; gives its wall time less the time inside the training loop."""
    run = RunConfig(forget=(DOMAIN,), method=AduConfig(gamma=1.0), train=TrainConfig(epochs=epochs))
    started = time.monotonic()
    lease = pool.executors.lease()
    lease.start(Command(name, run.model_dump(mode="json", by_alias=True)))
    loop_s = 0.0
    while (event := lease.advance()).epoch is not None:
        report = epoch_report(event.epoch)
        loop_s += report.train_s + report.val_s
    lease.release()
    assert event.kind == "done", event.error
    return time.monotonic() - started - loop_s


def warm(context: dict, epochs: int, runs: int) -> list[float]:
    """One executor for all runs; the first is not counted."""
    pool = ExecutorPool(SESSION, context, ResourcesConfig(executors=1), 1)
    pool.start()
    pool.wait_ready()
    overheads = [overhead_s(pool, f"warm-{number}", epochs) for number in range(runs + 1)]
    pool.close()
    return overheads[1:]


def cold(context: dict, epochs: int, runs: int) -> list[float]:
    """An executor for each run, its start and end included."""
    overheads = []
    for number in range(runs):
        started = time.monotonic()
        pool = ExecutorPool(SESSION, context, ResourcesConfig(executors=1), 1)
        pool.start()
        pool.wait_ready()
        start_s = time.monotonic() - started
        run_s = overhead_s(pool, f"cold-{number}", epochs)
        started = time.monotonic()
        pool.close()
        overheads.append(start_s + run_s + time.monotonic() - started)
    return overheads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--warm-runs", type=int, default=10)
    parser.add_argument("--cold-runs", type=int, default=3)
    arguments = parser.parse_args()
    results = Path("results").absolute()
    manifest = prepare_demo(results / "data")
    data = DataConfig(manifest=manifest.url)
    context = ContextConfig(data=data).model_dump(mode="json")
    with quiet_ray(results / "trial_overhead.log") as console:
        connect(None)
        warm_s = statistics.median(warm(context, arguments.epochs, arguments.warm_runs))
        cold_s = statistics.median(cold(context, arguments.epochs, arguments.cold_runs))
        ray.shutdown()
        console.print(f"warm executor          {warm_s:6.2f} s beside the training, a run")
        console.print(f"worker group each run  {cold_s:6.2f} s beside the training, a run")
        console.print(f"ratio                  {cold_s / warm_s:6.0f}")


if __name__ == "__main__":
    main()
