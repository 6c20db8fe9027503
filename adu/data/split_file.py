"""A few-shot split in a file: drawn once, and then read by whoever trains on it.

The file is a small Parquet file of the chosen rows, the training images first. Who has it needs
the manifest's card, and not one of its rows.
"""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq

from adu import storage
from adu.data.decoded import DataConfig
from adu.data.few_shot import FewShotSplit
from adu.data.manifest import Manifest
from adu.data.rows import SCHEMA, RowTable
from adu.errors import UserError

FACTS = b"few_shot_split"


def write_split(manifest: Manifest, config: DataConfig, url: str) -> None:
    """Draws a few-shot split and writes it.

    Args:
        manifest: The classes and domains that the configuration asks for.
        config: How many images, and the seed of the draw.
        url: The file.

    Raises:
        UserError: If a domain and class has too few images, or the file cannot be written.
    """
    split = manifest.few_shot_split(config.shots, config.val_shots, config.split_seed)
    rows = np.concatenate([split.train_rows, split.val_rows])
    facts = {**_facts(manifest, config), "n_train": len(split.train_rows)}
    table = manifest.columns(SCHEMA.names, rows)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({FACTS: json.dumps(facts)}), buffer)
    storage.write_bytes(url, buffer.getvalue())


def read_split(manifest: Manifest, config: DataConfig, url: str) -> tuple[Manifest, FewShotSplit]:
    """Opens the few-shot split that `write_split` has written.

    Args:
        manifest: The manifest that it was drawn from; nothing of it is read.
        config: What was asked for.
        url: The file.

    Returns:
        A manifest of the chosen images alone, and their numbers in it.

    Raises:
        UserError: If it cannot be read, or was drawn from other images or in another way.
    """
    folder, _, name = url.rpartition("/")
    rows = RowTable(folder or ".", [name])
    (file,) = rows.files
    try:
        facts = json.loads((file.metadata.metadata or {}).get(FACTS, b"{}"))
        n_train = facts.pop("n_train", None)
    except (ValueError, AttributeError):
        facts, n_train = None, None
    if facts != _facts(manifest, config) or not isinstance(n_train, int):
        raise UserError(
            f"few-shot split {url}: is not that of manifest {manifest.url} with context.data as it "
            "is now"
        )
    split = FewShotSplit(np.arange(n_train), np.arange(n_train, rows.n_rows))
    return replace(manifest, rows=rows, is_part=False), split


def _facts(manifest: Manifest, config: DataConfig) -> dict[str, object]:
    """What a draw depends on."""
    return {
        "digest": manifest.digest,
        "classes": list(manifest.classes),
        "domains": list(manifest.domains),
        "shots": config.shots,
        "val_shots": config.val_shots,
        "split_seed": config.split_seed,
    }
