"""Images a second of reading, and of ingest from S3, beside the decoder's own speed and others.

    make bench-data
    python -m tests.benchmarks.data_speed [--images FOLDER] [--repeats 3] [--no-manifest]

The limit, measured in the same run: Pillow decodes the same files, resizes them to 224 pixels
and crops them, on all cores, in processes that do nothing else. Everybody else
gives images of that size too. S3 is a SeaweedFS server on this machine, which takes its share of
the cores. Images are PACS of ../shared if it is there, else made up. Then the share of a training
step that waits for its images, from the second epoch on. Prints tables; the last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from torch import Tensor

from adu import storage
from adu.context import STREAM_BLOCK, ContextConfig, load_context
from adu.data.decoded import DataConfig, ImageSet, ImageTransform, train_batch
from adu.data.manifest import load_manifest
from adu.data.reading import stream_views
from adu.data.resample import resize_batch, resize_together
from adu.demo.dataset import write_images
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from pipeline.ingest import IngestConfig, ingest
from tests.benchmarks import manifest_scale
from tests.benchmarks.ingest_speed import make_images
from tests.s3 import s3_server

PACS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pacs"
SIZE = 224
TRANSFORM = ImageTransform(SIZE, (0.5,) * 3, (0.5,) * 3)
CORES = len(os.sched_getaffinity(0))
PEER_BATCH = 64
PIECE = 50
LIMIT = "Pillow alone: the limit"
BUCKET = "bench"


def rates_of(
    n_images: int, works: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Images a second: the best run of each, in rounds, so that all see the same machine."""
    best_s = dict.fromkeys(works, float("inf"))
    for number in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            if number > 0:  # the first round warms up
                best_s[name] = min(best_s[name], time.perf_counter() - started)
    return {name: n_images / seconds for name, seconds in best_s.items()}


def limit(files: list[Path], pool: ProcessPoolExecutor) -> Callable[[], object]:
    """Pillow alone, on all cores."""
    pieces = [files[start : start + PIECE] for start in range(0, len(files), PIECE)]
    return lambda: list(pool.map(decode, pieces))


def decode(files: list[Path]) -> None:
    """What the limit does with each image."""
    for file in files:
        image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        np.asarray(ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC))


def read(url: str, threads: int = 16) -> Callable[[], object]:
    """Reads all images of a manifest, as a test split that is too large to be kept."""
    manifest = load_manifest(url)
    rows = np.arange(manifest.n_images)

    def work() -> None:
        for block in stream_views(manifest, rows, TRANSFORM, STREAM_BLOCK, threads):
            assert len(block)

    return work


def image_folder(folder: Path) -> Callable[[], object]:
    """torchvision's way."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    views = v2.Compose(
        [v2.Resize(SIZE, v2.InterpolationMode.BICUBIC), v2.CenterCrop(SIZE), v2.PILToTensor()]
    )
    loader = DataLoader(
        ImageFolder(str(folder), views),
        PEER_BATCH,
        num_workers=CORES,
        persistent_workers=True,
        multiprocessing_context="fork",
    )

    def work() -> None:
        for _ in loader:
            pass

    return work


def ray_images(folder: Path) -> Callable[[], object]:
    """Ray Data's way."""
    import ray

    ray.init("local", num_cpus=CORES, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.read_images(str(folder), size=(SIZE, SIZE), mode="RGB")

    def work() -> None:
        for _ in dataset.iter_batches(batch_size=PEER_BATCH):
            pass

    return work


def measure_reading(images: Path, scratch: Path, repeats: int) -> dict[str, float]:
    """All rows of the first table, by name; images a second."""
    files = sorted(file for file in images.rglob("*") if file.suffix in (".jpg", ".png"))
    n, url = len(files), f"s3://{BUCKET}"
    loose, packed = str(scratch / "loose"), str(scratch / "packed")
    # "spawn": reading has threads, and a forked process would have their locks.
    with (
        ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool,
        s3_server(scratch / "s3") as environment,
    ):
        works = {
            LIMIT: limit(files, pool),
            "torchvision ImageFolder": image_folder(images),
        }
        rates = rates_of(n, works, repeats)
        ingesting(str(images), loose)()
        ingesting(str(images), packed, pack=True)()
        os.environ.update(environment)
        fs, _ = storage.filesystem_for(url)
        fs.mkdir(BUCKET)
        fs.put(str(images), f"{BUCKET}/images", recursive=True)
        ingesting(f"{url}/images", f"{url}/packed", pack=True)()
        rates |= rates_of(n, {"ingest, S3": ingesting(f"{url}/images", f"{url}/loose")}, repeats)
        works = {
            LIMIT: limit(files, pool),
            "read loose": read(loose),
            "read packed": read(packed),
        }
        again = rates_of(n, works, repeats)
        # Apart: in a process that has read shards from S3, loose files here are read a fourth
        # slower afterwards. No job does both.
        works = {
            "read loose, S3": read(f"{url}/loose"),
            "read packed, S3": read(f"{url}/packed"),
        }
        again |= rates_of(n, works, repeats)
        rates[LIMIT] = max(rates[LIMIT], again.pop(LIMIT))
        rates |= again
    return rates | rates_of(n, {"ray.data.read_images": ray_images(images)}, repeats)


def ingesting(source: str, out: str, **options: object) -> Callable[[], object]:
    """An ingest from the start, each time."""
    config = {"source": source, "out": out, "overwrite": True, **options}
    return lambda: ingest(IngestConfig.model_validate(config))


def measure_augmentation(images: Path, repeats: int) -> dict[str, float]:
    """Images a second that one thread augments on the CPU, in either way of `adu.data.resample`."""
    files = sorted(images.rglob("*.jpg"))[:64]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    names, zeros = [file.name for file in files], [0] * len(files)
    data = ImageSet(pixels, names, zeros, zeros)
    crops = [data.image(i)[:, 10:-20, 5:-40] for i in range(len(data))]
    flips = [i % 2 == 0 for i in range(len(data))]
    cpu = torch.device("cpu")

    def augment() -> Tensor:
        return train_batch(data, range(len(data)), TRANSFORM, seed=0, epoch=0)

    def resizing(way: Callable[..., Tensor]) -> Callable[[], object]:
        return lambda: way(crops, flips, SIZE, "bicubic", cpu)

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    works = {
        "train_batch": augment,
        "resize, one by one": resizing(resize_batch),
        "resize, matrix products": resizing(resize_together),
    }
    rates = rates_of(len(data), works, repeats)
    torch.set_num_threads(n_threads)
    return rates


def wait_shares(folder: str) -> list[float]:
    """Share of each epoch's steps, from the second on, that waits for images; one thread."""
    torch.set_num_threads(1)
    data = DataConfig(manifest=folder, shots=8, val_shots=1)
    context = load_context(ContextConfig(data=data), torch.device("cpu"))
    run = RunConfig.model_validate({"forget": ["sketch"], "train": {"epochs": 4}})
    reports = list(Trainer(run, context).epochs())
    return [report.wait_s / report.train_s for report in reports[1:]]


def measure_waiting(scratch: Path) -> dict[str, float]:
    """The demo: one executor, and as many as there are cores, all training at once."""
    write_images(scratch / "demo-images", images_per_cell=20, seed=0)
    folder = str(scratch / "demo")
    ingest(IngestConfig(source=str(scratch / "demo-images"), out=folder))
    shares = {}
    for n in {1, CORES}:
        with ProcessPoolExecutor(n, multiprocessing.get_context("spawn")) as pool:
            found = [share for shares in pool.map(wait_shares, [folder] * n) for share in shares]
        shares[f"{n} at once"] = statistics.median(found)
    return shares


def table(rates: dict[str, float]) -> Table:
    """The first table, with each row's share of the limit."""
    shown = Table(title=f"Images a second, {CORES} cores", title_justify="left")
    for name in ("", "images/s", "of the limit"):
        shown.add_column(name, justify="left" if name == "" else "right")
    for name, value in rates.items():
        shown.add_row(name, f"{value:.0f}", f"{100 * value / rates[LIMIT]:.0f} %")
    return shown


def images_folder(given: Path | None, scratch: Path) -> Path:
    """The images to measure with."""
    if given is not None:
        return given
    if PACS.is_dir():
        return PACS
    make_images(scratch / "images")
    return scratch / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of DOMAIN/CLASS/FILE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-manifest", action="store_true", help="leave the large manifest out")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        images = images_folder(arguments.images, scratch)
        rates = measure_reading(images, scratch, arguments.repeats)
        console.print(table(rates))
        augmented = measure_augmentation(images, arguments.repeats)
        console.print({f"augment: {name}": round(value) for name, value in augmented.items()})
        waiting = measure_waiting(scratch)
        console.print({f"waiting, {name}": f"{share:.2%}" for name, share in waiting.items()})
    figures = {"images_per_s": rates, "augment_images_per_s": augmented, "wait_share": waiting}
    if not arguments.no_manifest:
        rows = manifest_scale.measure(repeats=1)
        console.print(manifest_scale.table_of(rows))
        figures["manifest"] = rows
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
