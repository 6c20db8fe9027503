"""What benchmarks that train for hours share: data, shares of the work, a line of a file a run.

A run is written as soon as it is through and is not made again if it is there, so that a
measurement that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from adu.context import Context, ContextConfig, load_context

DEMO = Path(__file__).parents[2] / "search_spaces" / "demo.yaml"
DOMAINS = ("clipart", "painting", "photo", "sketch")

Line = dict[str, Any]
Item = TypeVar("Item")


def add_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """What a benchmark on one data set is told: the data, how all are trained, its share."""
    parser.add_argument("what", choices=["record", "table"])
    parser.add_argument("--space", type=Path, default=DEMO, help="how all are trained")
    parser.add_argument("--manifest", default="demo", help="folder or URL")
    parser.add_argument("--backbone", default="demo", help="open_clip model")
    parser.add_argument("--epochs", type=int, help="unset: as --space says")
    parser.add_argument("--precision", help="unset: as --space says, or fp32")
    parser.add_argument("--forget", nargs="+", default=DOMAINS)
    parser.add_argument("--share", default="1/1", metavar="I/N", help="of the work, from 1/N")
    parser.add_argument("--folder", type=Path, default=Path("results") / folder)


def record_or_show(
    arguments: argparse.Namespace,
    record: Callable[[argparse.Namespace], None],
    table: Callable[[argparse.Namespace], Iterable[str]],
) -> None:
    """Makes the runs that have not been made, or prints a table of those that have."""
    if arguments.what == "table":
        print("\n".join(table(arguments)))
        return
    # More threads than one add up in another order, and to another run.
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    record(arguments)


def training(arguments: argparse.Namespace) -> Line:
    """How all are trained: as --space says, and what else was asked for."""
    asked = {"epochs": arguments.epochs, "precision": arguments.precision}
    given = {name: value for name, value in asked.items() if value is not None}
    return {**yaml.safe_load(arguments.space.read_text())["train"], **given}


def load_data(arguments: argparse.Namespace, **changes: Any) -> Context:
    """Model and images, few-shot split and validation as --space says, but for the changes."""
    space = yaml.safe_load(arguments.space.read_text())
    data = {**space["context"]["data"], "manifest": arguments.manifest, **changes}
    values = {"backbone": {"name": arguments.backbone}, "data": data}
    return load_context(ContextConfig.model_validate(values), torch.device("cpu"))


def own_share(items: Sequence[Item], share: str) -> Sequence[Item]:
    """Those of the I-th of N who share the work."""
    part, n_parts = map(int, share.split("/"))
    return items[part - 1 :: n_parts]


def share_file(folder: Path, name: str, share: str) -> Path:
    """Where one who shares the work writes."""
    return folder / f"{name}-{share.replace('/', '-of-')}.jsonl"


def read_lines(files: Iterable[Path]) -> list[Line]:
    """What is written; half a line, of one that was killed, is passed over."""
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def add_line(file: Path, line: Line) -> None:
    """Writes a run."""
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")
