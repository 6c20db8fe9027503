"""The ingest command: what it writes, and how it refuses."""

import json
import shutil
from pathlib import Path

import pytest

from adu.manifest import CARD_FILE, load_manifest
from pipeline.ingest import IngestConfig, ingest, main
from tests.tiny import CLASSES, DOMAINS, tiny_images

PACS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pacs"


@pytest.fixture
def images(tmp_path):
    return tiny_images(tmp_path / "images", per_cell=4)


def refused(capsys, *arguments):
    """Runs the command, expecting one line of error; returns the line."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_a_folder_becomes_a_manifest(images, tmp_path):
    assert main(["--source", str(images), "--out", str(tmp_path / "m"), "--name", "tiny"]) == 0
    manifest = load_manifest(str(tmp_path / "m"))
    assert (manifest.name, manifest.classes, manifest.domains) == ("tiny", CLASSES, DOMAINS)
    assert set(manifest.cell_counts("test").values()) == {2}
    first = manifest.table.slice(0, 1).to_pylist()[0]
    assert (first["width"], first["height"]) == (36, 40)
    assert Path(first["uri"]).read_bytes()


def test_digest_is_the_same_from_elsewhere_and_with_other_threads(images, tmp_path):
    moved = shutil.copytree(images, tmp_path / "moved")
    here = ingest(IngestConfig(source=str(images), out=str(tmp_path / "a"), threads=1))
    there = ingest(IngestConfig(source=str(moved), out=str(tmp_path / "b"), threads=8))
    assert here.digest == there.digest


def test_from_bucket_to_bucket(images, s3, tmp_path):
    from adu.storage import filesystem_for

    filesystem_for(s3)[0].put(str(images), f"{s3.removeprefix('s3://')}/images", recursive=True)
    there = ingest(IngestConfig(source=f"{s3}/images", out=f"{s3}/manifest"))
    assert load_manifest(f"{s3}/manifest").table["uri"][0].as_py().startswith(f"{s3}/images/")
    here = ingest(IngestConfig(source=str(images), out=str(tmp_path / "m")))
    assert there.digest == here.digest


def test_a_corrupt_image_is_left_out_and_listed(images, tmp_path, capsys):
    (images / "photo" / "cup" / "bad.png").write_bytes(b"not an image")
    assert main(["--source", str(images), "--out", str(tmp_path / "m")]) == 0
    assert "photo/cup/bad.png: cannot be decoded" in capsys.readouterr().err
    card = json.loads((tmp_path / "m" / CARD_FILE).read_text())
    assert [image["image_id"] for image in card["rejected"]] == ["photo/cup/bad.png"]
    assert (
        "photo/cup/bad.png" not in load_manifest(str(tmp_path / "m")).table["image_id"].to_pylist()
    )


def test_strict_stops_at_a_corrupt_image_and_writes_nothing(images, tmp_path, capsys):
    (images / "photo" / "cup" / "bad.png").write_bytes(b"")
    out = tmp_path / "m"
    line = refused(capsys, "--source", str(images), "--out", str(out), "--strict")
    assert line == "error: image photo/cup/bad.png: is empty"
    assert not (out / CARD_FILE).exists()


def test_a_missing_source_is_refused(tmp_path, capsys):
    line = refused(capsys, "--source", str(tmp_path / "no"), "--out", str(tmp_path / "m"))
    assert line.endswith("/no: no such folder")


def test_a_source_without_images_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    line = refused(capsys, "--source", str(tmp_path / "empty"), "--out", str(tmp_path / "m"))
    assert "has no images" in line


def test_another_layout_is_refused(images, tmp_path, capsys):
    shutil.copy(images / "photo" / "cup" / "0.png", images / "stray.png")
    line = refused(capsys, "--source", str(images), "--out", str(tmp_path / "m"))
    assert "'stray.png' does not lie as domain/class/file" in line


def test_a_class_missing_from_a_domain_is_refused(images, tmp_path, capsys):
    shutil.rmtree(images / "sketch" / "fish")
    line = refused(capsys, "--source", str(images), "--out", str(tmp_path / "m"))
    assert line == "error: domain sketch: lacks classes that other domains have: fish"


def test_a_manifest_is_not_overwritten_unasked(images, tmp_path, capsys):
    arguments = ["--source", str(images), "--out", str(tmp_path / "m")]
    assert main(arguments) == 0
    capsys.readouterr()
    assert "exists already" in refused(capsys, *arguments)
    assert main([*arguments, "--overwrite"]) == 0


def test_an_unwritable_place_is_refused(images, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = refused(capsys, "--source", str(images), "--out", str(tmp_path / "file" / "m"))
    assert "is a file, not a folder" in line


@pytest.mark.skipif(not PACS.is_dir(), reason="needs ../shared/data/pacs (1,400 PACS images)")
def test_pacs_is_ingested_whole(tmp_path):
    manifest = ingest(IngestConfig(source=str(PACS), out=str(tmp_path / "pacs")))
    assert manifest.table.num_rows == 1400
    assert manifest.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert set(manifest.cell_counts("test").values()) == {25}
