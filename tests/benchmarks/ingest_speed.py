"""Images a second of an ingest, beside the speed of Pillow's decoder.

    python -m tests.benchmarks.ingest_speed [--images FOLDER]

The limit is Pillow decoding the same files, on all cores, in processes that do nothing else: once
decoding alone, once decoding and resizing to 224 pixels. Images are made up (500 x 375 pixels) if
no folder of DOMAIN/CLASS/FILE is given. Prints a table and, as the last line, its rows as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from pipeline.ingest import IngestConfig, ingest

N_IMAGES = 1500
SIDE = 224
Row = dict[str, object]


def measure(images: Path | None = None, repeats: int = 3) -> list[Row]:
    """Times ingest and its limits in turn, and gives each one's best run."""
    with _folder(images) as folder:
        files = sorted(str(file) for file in folder.rglob("*") if file.is_file())
        n_cores = len(os.sched_getaffinity(0))
        # "spawn": ingest has threads, and a forked process would have their locks.
        with ProcessPoolExecutor(n_cores, mp_context=get_context("spawn")) as pool:
            tasks: dict[str, Callable[[], None]] = {
                "limit: decode": partial(_on_all_cores, pool, files, None),
                "limit: decode, resize": partial(_on_all_cores, pool, files, SIDE),
                "ingest": partial(_ingest, folder),
                "ingest --pack": partial(_ingest, folder, pack=True),
                "ingest --pack-short-side 224": partial(
                    _ingest, folder, pack=True, pack_short_side=SIDE
                ),
                "torchvision ImageFolder, DataLoader": partial(_image_folder, folder, n_cores),
            }
            _on_all_cores(pool, files[:100], SIDE)
            best = {task: float("inf") for task in tasks}
            for _ in range(repeats):
                for task, do in tasks.items():
                    start = time.perf_counter()
                    do()
                    best[task] = min(best[task], time.perf_counter() - start)
    rate = {task: len(files) / seconds for task, seconds in best.items()}
    return [
        {
            "task": task,
            "images": len(files),
            "images_per_s": round(rate[task], 1),
            "of_decode": round(rate[task] / rate["limit: decode"], 3),
            "of_decode_resize": round(rate[task] / rate["limit: decode, resize"], 3),
        }
        for task in tasks
    ]


def table_of(rows: list[Row]) -> Table:
    """The rows as a table."""
    table = Table(title=f"{rows[0]['images']} images, {len(os.sched_getaffinity(0))} cores")
    for column in ("task", "images/s", "of decode", "of decode, resize"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in rows:
        shares = (f"{row[name]:.0%}" for name in ("of_decode", "of_decode_resize"))
        table.add_row(str(row["task"]), f"{row['images_per_s']:,.0f}", *shares)
    return table


@contextmanager
def _folder(images: Path | None) -> Iterator[Path]:
    if images is not None:
        yield images
        return
    with tempfile.TemporaryDirectory() as made_up:
        make_images(Path(made_up))
        yield Path(made_up)


def make_images(folder: Path) -> None:
    """Structure at several scales, so that files are as large as photographs are (80 KB)."""
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        layers = [
            np.asarray(
                Image.fromarray(
                    rng.integers(0, 256, (side * 3, side * 4, 3), dtype=np.uint8)
                ).resize((500, 375), Image.Resampling.BICUBIC),
                dtype=np.float32,
            )
            for side in (2, 8, 60)
        ]
        file = folder / f"domain{i % 2}" / f"class{i // 2 % 10}" / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.mean(layers, 0).astype(np.uint8)).save(file, quality=90)


def _on_all_cores(pool: ProcessPoolExecutor, files: list[str], side: int | None) -> None:
    pieces = [files[start : start + 50] for start in range(0, len(files), 50)]
    list(pool.map(_decode, pieces, [side] * len(pieces)))


def _decode(files: list[str], side: int | None) -> None:
    for file in files:
        with Image.open(file) as image:
            rgb = image.convert("RGB")
        if side is not None:
            rgb.resize((side, side), Image.Resampling.BICUBIC)


def _ingest(folder: Path, **options: object) -> None:
    with tempfile.TemporaryDirectory() as out:
        ingest(IngestConfig.model_validate({"source": str(folder), "out": out, **options}))


def _image_folder(folder: Path, n_workers: int) -> None:
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    prepare = transforms.Compose(
        [transforms.Resize(SIDE), transforms.CenterCrop(SIDE), transforms.ToTensor()]
    )
    loader = DataLoader(ImageFolder(str(folder), prepare), 64, num_workers=n_workers)
    for _ in loader:
        pass


def main() -> None:
    """Prints the table and its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of DOMAIN/CLASS/FILE")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows = measure(arguments.images, arguments.repeats)
    Console().print(table_of(rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
