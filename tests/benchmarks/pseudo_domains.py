"""What pseudo domains cost: H of models that are trained with them and tested with the true ones.

    python -m tests.benchmarks.pseudo_domains
    python -m tests.benchmarks.pseudo_domains --source IMAGES --backbone MODEL --folder results/more

The same images in the same splits with all labels, with a few of each domain, and with none. What
is forgotten is the domain that most images of --forget are taken for. What is there in --folder is
not made again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import t as student_t
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from adu import storage
from adu.context import Context, ContextConfig, open_context
from adu.data.decoded import DataConfig
from adu.data.manifest import CARD_FILE, Manifest, load_manifest
from adu.demo.manifest import demo_manifest
from adu.evaluation.evaluate import evaluate_test
from adu.models.backbone import BackboneConfig
from adu.models.openclip import load_backbone
from adu.training.config import RunConfig
from adu.training.trainer import Trainer
from pipeline.ingest import IngestConfig, ingest

CPU = torch.device("cpu")
ALL = "all"


class Bench:
    """One data set with more or fewer labels."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments, self._folder = arguments, arguments.folder
        self._folder.mkdir(parents=True, exist_ok=True)
        source = arguments.source or demo_manifest().source
        if not (self._folder / "images").exists():
            (self._folder / "images").symlink_to(Path(source).resolve())
        whole = self._ingested("whole", source=str(self._folder / "images"))
        self._rows = whole.columns(["image_id", "class", "domain", "split"]).to_pylist()
        self._n_domains = len(whole.domains)
        self._backbone = load_backbone(BackboneConfig(name=arguments.backbone), CPU)

    def runs(self, labels: str) -> list[dict[str, Any]]:
        """Trains and tests with so many labels of each domain, once with each seed."""
        manifest = self._manifest(labels)
        pairs = self._pairs(manifest)
        shares = Counter(its for true, its in pairs if true == self._arguments.forget)
        context = self._true if labels == ALL else self._context(manifest)
        return [
            self._run(labels, seed, context, shares.most_common(1)[0][0]) | _agreement(pairs)
            for seed in range(self._arguments.seeds)
        ]

    def _run(self, labels: str, seed: int, context: Context, forget: str) -> dict[str, Any]:
        file = self._folder / f"run-{labels}-{seed}.json"
        if not file.exists():
            train = {"epochs": self._arguments.epochs, "seed": seed, **dict(self._arguments.set)}
            method = {"name": "adu", "recipe": "stable"}
            values = {"forget": [forget], "method": method, "train": train}
            trainer = Trainer(RunConfig.model_validate(values), context)
            for _ in trainer.epochs():
                pass
            with trainer.precision():
                scores = evaluate_test(trainer.model, self._true, (self._arguments.forget,)).scores
            file.write_text(json.dumps(scores.as_dict()))
            print(labels, "labels, seed", seed, f"H {100 * scores.h:.1f}", flush=True)
        return dict(json.loads(file.read_text()))

    @cached_property
    def _true(self) -> Context:
        return self._context(self._manifest(ALL))

    def _manifest(self, labels: str) -> Manifest:
        """The images with so many labels of each domain, drawn by their names."""
        file, taken = self._folder / f"{labels}.csv", Counter[str]()
        with file.open("w", newline="") as stream:
            listing = csv.writer(stream)
            listing.writerow(["path", "class", "domain", "split"])
            for row in sorted(self._rows, key=lambda row: _hash(row["image_id"])):
                taken[row["domain"]] += 1
                known = labels == ALL or taken[row["domain"]] <= int(labels)
                domain = row["domain"] if known else ""
                listing.writerow([f"images/{row['image_id']}", row["class"], domain, row["split"]])
        pseudo = {"domains": f"pseudo:{self._n_domains}", "backbone": self._arguments.backbone}
        options = {} if labels == ALL else pseudo
        return self._ingested(labels, source=str(file), layout="listing", **options)

    def _ingested(self, name: str, **options: Any) -> Manifest:
        out = str(self._folder / f"manifest-{name}")
        if storage.exists(storage.join(out, CARD_FILE)):
            return load_manifest(out)
        return ingest(IngestConfig(out=out, **options))

    def _pairs(self, manifest: Manifest) -> list[tuple[str, str]]:
        """Each image's true domain, and the one that it has."""
        true = {f"images/{row['image_id']}": row["domain"] for row in self._rows}
        rows = manifest.columns(["image_id", "domain"]).to_pylist()
        return [(true[row["image_id"]], row["domain"]) for row in rows]

    def _context(self, manifest: Manifest) -> Context:
        data = DataConfig(manifest=manifest.url, shots=self._arguments.shots, val_shots=1)
        config = ContextConfig(backbone=BackboneConfig(name=self._backbone.name), data=data)
        return open_context(config, manifest, CPU, backbone=self._backbone)


def _hash(image_id: str) -> str:
    return hashlib.sha256(f"labels/{image_id}".encode()).hexdigest()


def _agreement(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    true, found = zip(*pairs, strict=True)
    ari, nmi = adjusted_rand_score(true, found), normalized_mutual_info_score(true, found)
    return {"ari": ari, "nmi": nmi}


def table(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A row for each number of labels, with differences to all of them, seed by seed."""
    lines = ["| labels a domain | ARI | NMI | Mem | For | H | difference in H |", "|---" * 7 + "|"]
    for labels, own in runs.items():
        mem, for_, h = ([100 * run[name] for run in own] for name in ("mem", "for", "h"))
        lines.append(
            f"| {labels} | {own[0]['ari']:.2f} | {own[0]['nmi']:.2f} | {statistics.mean(mem):.1f} "
            f"| {statistics.mean(for_):.1f} | {statistics.mean(h):.1f} ± {statistics.stdev(h):.1f} "
            f"| {'' if labels == ALL else _difference(own, runs[ALL])} |"
        )
    return lines


def _difference(own: Sequence[dict[str, Any]], true: Sequence[dict[str, Any]]) -> str:
    apart = [100 * (a["h"] - b["h"]) for a, b in zip(own, true, strict=True)]
    mean, error = statistics.mean(apart), statistics.stdev(apart) / len(apart) ** 0.5
    reach = error * student_t.ppf(0.975, len(apart) - 1)
    return f"{mean:+.1f} ({mean - reach:+.1f} to {mean + reach:+.1f})"


def _option(text: str) -> tuple[str, Any]:
    name, value = text.split("=", 1)
    return name, yaml.safe_load(value)


def main() -> None:
    """Trains, tests and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="folder DOMAIN/CLASS/FILE; unset: the demo's")
    parser.add_argument("--backbone", default="demo")
    parser.add_argument("--forget", default="sketch")
    parser.add_argument("--labels", nargs="+", default=["0", "4"], help="of each domain")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, help="how many, at least 2")
    parser.add_argument("--set", type=_option, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--folder", type=Path, default=Path("results/pseudo-domains"))
    arguments = parser.parse_args()
    arguments.folder = arguments.folder.resolve()
    torch.set_num_threads(1)
    bench = Bench(arguments)
    print("\n".join(table({labels: bench.runs(labels) for labels in (ALL, *arguments.labels)})))


if __name__ == "__main__":
    main()
