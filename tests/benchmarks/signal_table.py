"""Records what configurations of the demo come to, so that a search can be replayed in seconds.

    python -m tests.benchmarks.signal_table record [--share 1/2]
    python -m tests.benchmarks.signal_table pack

Configurations are drawn from the demo's space, the defaults first; each is trained on every forget
set with every seed. A row is an epoch: validation figures, all images and a few of them, and after
the last one test figures. `record` appends a line a run to a file of its share and goes on where it
was stopped; `pack` adds what all shares have to one Parquet file, which `record` goes on from, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from adu.config import parse_config
from adu.context import Context, load_context
from adu.evaluation.metrics import Scores
from adu.training.config import RunConfig
from adu.training.trainer import Trainer, TrainingDivergedError
from pipeline.demo_data import prepare_demo
from pipeline.jobs.config import SearchConfig
from pipeline.jobs.finals import seeded_run
from pipeline.studies.space import Space, configure, defaults, suggest
from tests.benchmarks.runs import DOMAINS, add_line, own_share, read_lines, share_file

# search_spaces/demo.yaml as it was when the first half was recorded, which has taught the defaults
# of today: more prompts, smaller weights.
DEMO = Path(__file__).parent / "demo_table.yaml"
TABLE = Path(__file__).parent / "demo_table.parquet"
SEEDS = (0, 1, 2)
DRAWN_WITH = 0


@dataclass(frozen=True)
class Task:
    """A run to record."""

    number: int
    forget: str
    seed: int


def demo_config() -> SearchConfig:
    """The demo's configuration, as recorded."""
    return parse_config(SearchConfig, yaml.safe_load(DEMO.read_text()), str(DEMO))


def configurations(space: Space, base: RunConfig, n: int) -> list[dict[str, Any]]:
    """The defaults and random points of a space, always the same ones."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=DRAWN_WITH))
    study.enqueue_trial(defaults(space))
    return [suggest(study.ask(), space, base) for _ in range(n)]


def tasks(n: int, domains: tuple[str, ...] = DOMAINS) -> Iterator[Task]:
    """What is to be recorded: whole configurations one after another, so that a part is of use."""
    for number, seed, forget in itertools.product(range(n), SEEDS, domains):
        yield Task(number, forget, seed)


def record_run(run: RunConfig, context: Context) -> list[dict[str, float | None]]:
    """Trains a run; gives a row an epoch, as far as it came."""
    trainer, rows = Trainer(run, context), []
    try:
        for report in trainer.epochs():
            figures = {"epoch": report.epoch, "seconds": report.train_s + report.val_s}
            figures |= _figures("val", report.val)
            figures |= _figures("quick", trainer.validate(quick=True))
            # The truth is what comes out at the end; a test costs as much as an epoch.
            tested = None
            if report.epoch == run.train.epochs:
                tested = trainer.test().scores
            rows.append(figures | _figures("test", tested))
    except TrainingDivergedError:
        # What has diverged has no further epochs.
        pass
    return rows


def record(arguments: argparse.Namespace) -> None:
    """Records the runs of a share that neither its file nor the table holds yet."""
    torch.set_num_threads(1)
    config = demo_config()
    data = config.context.data.model_copy(update={"manifest": prepare_demo(arguments.folder).url})
    context = load_context(config.context.model_copy(update={"data": data}), torch.device("cpu"))
    train = config.train.model_copy(update={"epochs": arguments.epochs})
    file = share_file(arguments.folder, "signal", arguments.share)
    known = [*packed_runs(arguments.table), *read_lines([file])]
    done = {(run["number"], run["forget"], run["seed"]) for run in known}
    base = RunConfig(forget=(DOMAINS[0],), method=config.method, train=train)
    drawn = configurations(config.space, base, arguments.configurations)
    for task in own_share(list(tasks(arguments.configurations)), arguments.share):
        if (task.number, task.forget, task.seed) in done:
            continue
        params = drawn[task.number]
        run = configure(base.model_copy(update={"forget": (task.forget,)}), params)
        rows = record_run(seeded_run(run, task.seed), context)
        add_line(file, {**vars(task), "params": params, "rows": rows})
        print(task.number, task.forget, task.seed, rows[-1]["test_h"] if rows else None, flush=True)


def packed_runs(table: Path) -> list[dict[str, Any]]:
    """The runs that a table holds."""
    if not table.exists():
        return []
    runs: dict[tuple[int, str, int], dict[str, Any]] = {}
    for row in pq.read_table(table).to_pylist():
        task = (row.pop("number"), row.pop("forget"), row.pop("seed"))
        own = {**vars(Task(*task)), "params": json.loads(row.pop("params")), "rows": []}
        runs.setdefault(task, own)["rows"].append(row)
    return list(runs.values())


def pack(folder: Path, table: Path) -> None:
    """Adds the configurations that are recorded with every set and seed to the table."""
    known = packed_runs(table)
    packed = {(run["number"], run["forget"], run["seed"]) for run in known}
    recorded = read_lines(sorted(folder.glob("signal-*-of-*.jsonl")))
    new = [run for run in recorded if (run["number"], run["forget"], run["seed"]) not in packed]
    runs = [*known, *new]
    n_runs = Counter(run["number"] for run in runs)
    whole = {number for number, n in n_runs.items() if n == max(n_runs.values())}
    rows = [
        {
            "number": run["number"],
            "forget": run["forget"],
            "seed": run["seed"],
            "params": json.dumps(run["params"]),
            **row,
        }
        for run in runs
        if run["number"] in whole
        for row in run["rows"]
    ]
    columns = pa.Table.from_pylist(rows)
    # Half the size, and still a thousandth of what seeds differ by.
    halves = [
        field.with_type(pa.float32()) if pa.types.is_floating(field.type) else field
        for field in columns.schema
    ]
    order = [(name, "ascending") for name in ("forget", "number", "seed", "epoch")]
    pq.write_table(columns.cast(pa.schema(halves)).sort_by(order), table, compression="zstd")
    print(f"{table}: {len(rows)} epochs, {table.stat().st_size / 2**20:.2f} MiB")


def _figures(kind: str, scores: Scores | None) -> dict[str, float | None]:
    known = scores.as_dict() if scores else {}
    return {f"{kind}_{name}": known.get(name) for name in ("mem", "for", "h")}


def main() -> None:
    """Records, or packs what has been."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["record", "pack"])
    parser.add_argument("--configurations", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--share", default="1/1", metavar="I/N", help="of the runs, from 1/N")
    parser.add_argument("--folder", type=Path, default=Path("results/signal"))
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.what == "record":
        record(arguments)
    else:
        pack(arguments.folder, arguments.table)


if __name__ == "__main__":
    main()
