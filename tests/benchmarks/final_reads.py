"""How often DomainNet's final runs fetch and decode test images, counted on a small scale.

    python -m tests.benchmarks.final_reads [--nodes 4] [--executors 2] [--images 48]

62 forget sets of 6 domains, 9 runs each that train and one zero-shot for all: 559 runs on nodes
with some executors. A node is a cache of decoded images of its own; images lie in an S3 server
behind a proxy that counts requests. Images are kept in memory, on the disk, or streamed by every
run (of which a few are counted). Prints one line of JSON for each way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path

import torch

from adu import storage
from adu.context import Context, ContextConfig, load_context
from adu.data.cache import ImageCache
from adu.data.decoded import DataConfig
from adu.data.reading import READ_LOG_VARIABLE
from adu.models.backbone import BackboneConfig
from pipeline.ingest import IngestConfig, ingest
from tests.fault_proxy import fault_proxy
from tests.s3 import s3_server
from tests.tiny import CLASSES, DOMAINS, tiny_backbone, tiny_images

N_SETS, RUNS_OF_SET = 62, 9
N_RUNS = N_SETS * RUNS_OF_SET + 1
STREAMED_RUNS = 3
WAYS = {"memory": (4, 0), "disk": (0, 32), "streamed": (0, 0)}
BUCKET = "final-reads"


def executors(config: ContextConfig, nodes: Path, n_nodes: int, n_each: int) -> list[Context]:
    """The contexts of all executors; those of a node share their images."""
    cpu = torch.device("cpu")
    homes = [nodes / str(number) for number in range(n_nodes)]
    for home in homes:
        home.mkdir(parents=True)
    return [
        load_context(config, cpu, ImageCache("job", [home]))
        for home in homes
        for _ in range(n_each)
    ]


def test_everything(contexts: list[Context], n_runs: int) -> None:
    """Hands the runs to the executors in turn; each looks at all test images."""
    for context in itertools.islice(itertools.cycle(contexts), n_runs):
        for images in context.test_images(slice(None)):
            assert len(images)


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--images", type=int, default=48, help="test images, about")
    arguments = parser.parse_args()
    per_cell = 2 * arguments.images // (len(DOMAINS) * len(CLASSES))
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder) / "s3") as environment:
        scratch = Path(folder)
        with fault_proxy(environment["AWS_ENDPOINT_URL_S3"]) as proxy:
            os.environ.update(environment | {"AWS_ENDPOINT_URL_S3": proxy.url})
            fs, _ = storage.filesystem_for(f"s3://{BUCKET}")
            fs.mkdir(BUCKET)
            fs.put(str(tiny_images(scratch / "images", per_cell)), f"{BUCKET}/in", recursive=True)
            backbone = BackboneConfig(name=str(tiny_backbone(scratch / "model")))
            for number, (pack, way) in enumerate(itertools.product((False, True), WAYS)):
                url = f"s3://{BUCKET}/manifest-{number}"
                ingest(IngestConfig(source=f"s3://{BUCKET}/in", out=url, pack=pack))
                cache_gib, disk_gib = WAYS[way]
                data = DataConfig(
                    manifest=url, shots=1, val_shots=1, cache_gib=cache_gib, disk_gib=disk_gib
                )
                config = ContextConfig(backbone=backbone, data=data)
                homes = scratch / str(number)
                contexts = executors(config, homes, arguments.nodes, arguments.executors)
                log = scratch / f"reads-{number}"
                os.environ[READ_LOG_VARIABLE] = str(log)
                place = "/images/" if pack else "/in/"
                before = proxy.gets(place).total()
                n_runs = STREAMED_RUNS if way == "streamed" else N_RUNS
                test_everything(contexts, n_runs)
                figures = {
                    "images lie": "packed" if pack else "loose",
                    "kept": way,
                    "nodes": arguments.nodes,
                    "executors": len(contexts),
                    "runs": n_runs,
                    "test images": len(contexts[0].manifest.test_rows()),
                    "decoded": len(log.read_text().splitlines()),
                    "GET requests": proxy.gets(place).total() - before,
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
