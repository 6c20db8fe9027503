"""What tests of ingest look at: the card of a manifest, and images that are made up."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from adu.data.manifest import CARD_FILE, load_manifest
from pipeline.ingest import main
from pipeline.ingestion.checks import CHECKS


def card_of(out):
    return json.loads((Path(out) / CARD_FILE).read_text())


def run(images, out, *arguments):
    return main(["--source", str(images), "--out", str(out), *arguments])


def found_by(out):
    checks = card_of(out)["checks"]
    return {name: its["examples"] for name, its in checks.items() if its["count"]}


def check_sums(out):
    """Every entry is used, converted or left out, and what is left out has its reason."""
    card = card_of(out)
    entries = card["entries"]
    assert entries["found"] == entries["used"] + entries["converted"] + entries["left_out"]
    left_out = {name: its["count"] for name, its in card["checks"].items()}
    left_out = {name: n for name, n in left_out.items() if CHECKS[name][1] == "left out"}
    assert sum(left_out.values()) == entries["left_out"]
    rows = load_manifest(str(out)).n_images
    assert rows == entries["used"] + entries["converted"]
    return entries


def noise(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(format_, **options):
    buffer = io.BytesIO()
    noise().save(buffer, format_, **options)
    return buffer.getvalue()
