"""Few-shot splits of a manifest of 1.3 million images, or any number: time and memory.

    python -m tests.benchmarks.manifest_scale [--images 1300000] [--repeats 5]

Writes a manifest of made-up rows as ImageNet with ImageNet-Sketch has them (1,000 classes in two
domains) and measures, each in a process of its own, what a search does with it, the fastest of the
runs: the draw alone; what the driver does once a job (checks, draw, file); what a worker does with
the file. Prints a table and, as the last line, its rows as one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from adu.data.decoded import DataConfig, select_images
from adu.data.manifest import described_manifest, load_manifest
from adu.data.rows import SCHEMA
from adu.data.split_file import read_split, write_split
from adu.data.writing import write_manifest

N_CLASSES = 1000
N_SKETCHES = 50_000
SHOTS, VAL_SHOTS = 16, 4
N_TRAIN = SHOTS * N_CLASSES * 2
TASKS = ("few_shot_split", "job", "worker", "all_ids")
BLOCK = 2**18
MIB = 2**20


def measure(n_images: int = 1_300_000, repeats: int = 5) -> list[dict[str, object]]:
    """Writes the manifest and measures; one row of the table for each thing done."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [_child("write", folder, n_images)]
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        rows[0]["disk_mib"] = round(size / MIB)
        for task in TASKS:
            runs = [_child(task, folder, n_images) for _ in range(repeats)]
            rows.append(min(runs, key=lambda run: float(str(run["seconds"]))))
    return rows


def run_task(task: str, folder: str, n_images: int) -> dict[str, object]:
    """Does one thing in this process and says how long it took and how much memory it had."""
    before_mib = _peak_mib()
    start, cpu_start = time.perf_counter(), time.process_time()
    split_file = f"{folder}/split.parquet"
    config = DataConfig(manifest=folder, shots=SHOTS, val_shots=VAL_SHOTS)
    if task == "write":
        rows = made_up_rows(n_images)
        write_manifest(folder, rows, name="made up", source="nowhere", synthetic=True)
    elif task == "worker":
        chosen, split = read_split(described_manifest(folder), config, split_file)
        assert chosen.columns(["uri", "sha256"], split.train_rows).num_rows == N_TRAIN
    else:
        manifest = load_manifest(folder)
        if task == "job":
            write_split(select_images(manifest, config), config, split_file)
        elif task == "few_shot_split":
            split = manifest.few_shot_split(SHOTS, VAL_SHOTS, seed=0)
            assert len(split.train_rows) == N_TRAIN
        else:
            assert manifest.columns(["image_id"]).num_rows == n_images
    return {
        "task": task,
        "images": n_images,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu_start, 2),
        "peak_mib": round(_peak_mib()),
        "before_mib": round(before_mib),
    }


def made_up_rows(n_images: int) -> Iterator[pa.Table]:
    """Rows as ImageNet with sketches has them, half of the sketches for testing; in order."""
    for start in range(0, n_images, BLOCK):
        yield made_up_block(np.arange(start, min(start + BLOCK, n_images)), N_SKETCHES)


def made_up_block(number_N: np.ndarray, n_sketches: int) -> pa.Table:
    """Some of the rows; those with small numbers are of sketches."""
    rng = np.random.default_rng(int(number_N[0]))
    n = len(number_N)
    sketch_N = number_N < n_sketches
    class_N = number_N // 7 % N_CLASSES
    test_N = np.where(sketch_N, number_N % 2 == 0, rng.random(n) < 0.04)
    folders = np.where(sketch_N, "a-sketch", "photo").tolist()
    ids = [
        f"{folder}/{number:09}/n{c:08}.JPEG"
        for folder, number, c in zip(folders, number_N.tolist(), class_N.tolist(), strict=True)
    ]
    hashes = rng.bytes(32 * n).hex()
    columns = {
        "image_id": pa.array(ids),
        "uri": pa.array([f"s3://bucket/imagenet/{image_id}" for image_id in ids]),
        "domain": pa.array(np.where(sketch_N, "sketch", "photo").tolist()),
        "class": pa.array([f"class_{c}" for c in class_N.tolist()]),
        "split": pa.array(np.where(test_N, "test", "train").tolist()),
        "width": pa.array(np.full(n, 500), pa.int32()),
        "height": pa.array(np.full(n, 375), pa.int32()),
        "bytes": pa.array(rng.integers(20_000, 200_000, n)),
        "sha256": pa.array([hashes[64 * i : 64 * i + 64] for i in range(n)]),
        "flags": pa.nulls(n, pa.list_(pa.string())),
        "shard": pa.nulls(n, pa.string()),
        "shard_row": pa.nulls(n, pa.int32()),
    }
    return pa.table(columns, schema=SCHEMA)


def table_of(rows: list[dict[str, object]]) -> Table:
    """The rows as a table."""
    table = Table(title=f"Manifest of {rows[0]['images']:,} images")
    for column in ("task", "seconds", "CPU seconds", "peak MiB", "of it before"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in rows:
        cells = ("task", "seconds", "cpu_seconds", "peak_mib", "before_mib")
        table.add_row(*(str(row[cell]) for cell in cells))
    table.caption = f"{rows[0]['disk_mib']} MiB on disk"
    return table


def _child(task: str, folder: str, n_images: int) -> dict[str, object]:
    command = [sys.executable, "-m", __spec__.name, "--images", str(n_images)]
    command += ["--task", task, "--folder", folder]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _peak_mib() -> float:
    # Not getrusage: Linux hands the parent's peak on to a process that it starts.
    status = Path("/proc/self/status").read_text()
    (peak_kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(peak_kib) / 1024


def main() -> None:
    """Prints the table and its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_300_000, help="at least 100,000")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--task", choices=("write", *TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run_task(arguments.task, arguments.folder, arguments.images)))
        return
    rows = measure(arguments.images, arguments.repeats)
    Console().print(table_of(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
