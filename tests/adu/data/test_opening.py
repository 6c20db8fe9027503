"""Images of every kind become the same manifest, and what cannot be one is a line."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from adu.data.manifest import load_manifest
from adu.data.opening import open_images
from adu.data.reading import check_images, read_images, stored
from adu.errors import UserError
from tests.tiny import CLASSES, DOMAINS, tiny_images, tiny_manifest

PER_CELL = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_images(tmp_path_factory.mktemp("images"), PER_CELL)


class Feature:
    def __init__(self, names):
        self.names = names


class HuggingFace:
    """The surface of `datasets.Dataset` that is used: columns, features, rows as dicts."""

    def __init__(self, rows):
        self.rows = rows
        self.column_names = list(rows[0])
        self.features = {"label": Feature(list(CLASSES))}

    def __iter__(self):
        return iter(self.rows)


def rows(folder):
    return [
        {"path": str(file), "class": file.parent.name, "domain": file.parent.parent.name}
        for file in sorted(folder.rglob("*.png"))
    ]


def hugging_face(folder):
    return HuggingFace(
        [
            {
                "image": Image.open(row["path"]),
                "label": CLASSES.index(row["class"]),
                "domain": row["domain"],
            }
            for row in rows(folder)
        ]
    )


KINDS = {
    "folder": lambda folder: folder,
    "DataFrame": lambda folder: pd.DataFrame(rows(folder)),
    "torchvision": lambda folder: {domain: ImageFolder(folder / domain) for domain in DOMAINS},
    "Hugging Face": hugging_face,
}


def contents(manifest):
    """Every image's pixels, class and domain, in an order of their own."""
    everything = np.arange(manifest.n_images)
    images = read_images(manifest, everything, stored(None), threads=2)
    names = zip(images.class_N.tolist(), images.domain_N.tolist(), strict=True)
    return sorted((*name, images.image(i).numpy().tobytes()) for i, name in enumerate(names))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_images(folder, kind):
    manifest = open_images(KINDS[kind](folder))
    assert (manifest.classes, manifest.domains) == (CLASSES, DOMAINS)
    assert contents(manifest) == contents(open_images(folder))
    assert set(manifest.cell_counts("test").values()) == {PER_CELL // 2}
    check_images(manifest)


def test_a_folder_is_what_ingest_makes_of_it(tmp_path):
    """So that a model of the one can be evaluated on the other."""
    ingested = load_manifest(str(tiny_manifest(tmp_path, PER_CELL)))
    assert open_images(tmp_path / "images").digest == ingested.digest
    assert open_images(tmp_path / "manifest").digest == ingested.digest
    assert open_images(ingested) is ingested


def test_what_is_written_is_there_for_others(folder, tmp_path):
    for kind in ("folder", "Hugging Face"):
        out = str(tmp_path / kind)
        opened = open_images(KINDS[kind](folder), out)
        again = load_manifest(out)
        assert again.digest == opened.digest
        assert contents(again) == contents(opened)


def test_splits_and_names_are_taken_as_they_are_given(folder):
    table = pd.DataFrame(rows(folder))
    table["split"] = ["validation" if i % 4 == 0 else "train" for i in range(len(table))]
    table["class"] = table["class"].str.replace("cup", "Tea Cup")
    manifest = open_images(table)
    assert manifest.classes == ("fish", "star", "tea_cup")
    assert set(manifest.cell_counts("test").values()) == {1}
    sides = open_images({"train": hugging_face(folder), "test": hugging_face(folder)})
    assert set(sides.cell_counts("test").values()) == {PER_CELL}


def test_images_elsewhere_than_the_table_says_are_not_opened(folder):
    manifest = replace(open_images(folder), allow_uri=())
    with pytest.raises(UserError, match="lies elsewhere"):
        contents(manifest)


def not_images(folder, tmp_path):
    (tmp_path / "photo" / "cup").mkdir(parents=True)
    (tmp_path / "photo" / "cup" / "notes.txt").write_text("no image")
    return tmp_path


def loose(folder, tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    return tmp_path


def with_column(folder, **values):
    return pd.DataFrame([row | values for row in rows(folder)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda folder, tmp: tmp / "nowhere", "nowhere: no such folder, nor a manifest"),
        (loose, "'1.png' does not lie as domain/class/file"),
        (not_images, "image photo/cup/notes.txt: cannot be decoded .not an image"),
        (lambda folder, tmp: tmp, "images .*: there are none"),
        (lambda folder, tmp: 5, "a int cannot be opened .allowed: a manifest, a folder"),
        (lambda folder, tmp: {"photo": 5}, r"images\['photo'\]: a int .allowed: "),
        (
            lambda folder, tmp: with_column(folder).drop(columns="domain"),
            "no column for the domain among path, class .allowed: domain",
        ),
        (lambda folder, tmp: with_column(folder, split="dev"), "split 'dev': unknown .allowed: tr"),
        (lambda folder, tmp: with_column(folder, path="/no/1.png"), "/no/1.png"),
        (
            lambda folder, tmp: with_column(folder, path=0.5),
            "image in row 0: is a float of float64, shape .. .allowed: Pillow's, or",
        ),
    ],
)
def test_what_holds_no_images_is_one_line(folder, tmp_path, source, message):
    with pytest.raises(UserError, match=message) as raised:
        open_images(source(folder, tmp_path))
    assert "\n" not in str(raised.value)
