"""The ingest command: what it writes, and how it refuses."""

import hashlib
import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adu import storage
from adu.data.images import cores
from adu.data.manifest import CARD_FILE, load_manifest
from adu.data.shards import read_shard_images
from adu.errors import UserError
from pipeline.ingest import IngestConfig, ingest, main
from pipeline.ingestion.checks import CHECKS
from pipeline.ingestion.config import STORE_THREADS
from tests.adu.data.test_images import huge_png
from tests.pipeline.commands import start
from tests.tiny import CLASSES, DOMAINS, tiny_images

PACS = Path(__file__).resolve().parents[3] / "shared" / "data" / "pacs"


def noise(seed, size=(40, 36)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def checks_of(manifest):
    """How many each check found, without those that found nothing."""
    card = json.loads((Path(manifest) / CARD_FILE).read_text())
    return {name: check["count"] for name, check in card["checks"].items() if check["count"]}


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


def test_a_store_is_asked_by_many_threads_and_the_interpreter_shared_by_few():
    here, there = "/images", "memory://images"
    assert IngestConfig(source=here, out="/m").n_threads == 2 * cores()
    assert IngestConfig(source=there, out="/m").n_threads == STORE_THREADS
    assert IngestConfig(source=here, out="/m", threads=7).n_threads == 7


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


def test_strict_tells_every_check_that_found_something_and_writes_no_manifest(
    images, tmp_path, capsys
):
    (images / "photo" / "cup" / "bad.png").write_bytes(b"")
    out = tmp_path / "m"
    arguments = ["--source", str(images), "--out", str(out), "--shots", "1", "--val-shots", "1"]
    assert main([*arguments, "--strict"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    n = len(CHECKS)
    assert line.startswith(f"error: 1 of {n} checks found something: zero_byte 1 (photo/cup/bad")
    assert not (out / CARD_FILE).exists()
    Image.fromarray(noise(3)).save(images / "photo" / "cup" / "bad.png")
    assert main([*arguments, "--strict"]) == 0
    assert len(load_manifest(str(out)).table) == 37


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
    assert line == (
        "error: domain sketch: lacks classes that other domains have: fish "
        "(--classes intersection leaves them out)"
    )
    arguments = ["--source", str(images), "--out", str(tmp_path / "m")]
    assert main([*arguments, "--classes", "intersection"]) == 0
    assert load_manifest(str(tmp_path / "m")).classes == ("cup", "star")


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


def test_every_check_has_its_line_in_the_report_and_in_the_card(tmp_path, capsys):
    images = tiny_images(tmp_path / "images", per_cell=6)
    cell = images / "photo" / "cup"
    good = (cell / "0.png").read_bytes()
    (cell / "zero.png").write_bytes(b"")
    (cell / "text.png").write_bytes(b"hello")
    (cell / "cut.png").write_bytes(good[: len(good) // 2])
    (cell / "bomb.png").write_bytes(huge_png())
    (cell / "gone.png").symlink_to(cell / "nowhere.png")
    Image.fromarray(noise(1)).convert("CMYK").save(cell / "cmyk.jpg")
    Image.fromarray(noise(2)[..., 0].astype(np.uint16) * 257).save(cell / "deep.png")
    Image.fromarray(noise(3)).quantize(16).save(cell / "palette.png")
    Image.fromarray(np.concatenate([noise(4), noise(5)[..., :1]], 2)).save(cell / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise(6)).save(cell / "turned.jpg", exif=exif)
    picture = Image.fromarray(noise(7, (6, 6))).resize((90, 90), Image.Resampling.BICUBIC)
    for domain, quality in (("photo", 95), ("sketch", 60)):
        picture.save(images / domain / "cup" / "smooth.jpg", quality=quality)
    for name in range(6):  # some of these are for testing, others for training
        Image.fromarray(noise(8)).save(images / "clipart" / "star" / f"same{name}.png")
    shutil.copy(cell / "1.png", images / "sketch" / "cup" / "copy.png")

    out = tmp_path / "m"
    arguments = ["--source", str(images), "--out", str(out), "--shots", "3", "--val-shots", "1"]
    assert main(arguments) == 0
    found = checks_of(out)
    # Six times the same image, and perhaps the copy in another domain.
    assert found.pop("same_in_two_splits") in (1, 2)
    found.pop("similar_in_two_splits", None)  # chance decides where the similar ones go
    assert found == {
        "unreadable": 1,
        "truncated": 1,
        "zero_byte": 1,
        "not_an_image": 1,
        "decompression_bomb": 1,
        "cmyk": 1,
        "16_bit": 1,
        "palette": 1,
        "alpha": 1,
        "exif_rotation": 1,
        "same_in_one_cell": 2,  # on each side of the split
        "same_in_two_domains": 1,
        "similar_in_two_domains": 1,
        "few_shots": 6,
    }
    report = capsys.readouterr().err
    for label, _ in CHECKS.values():
        assert f"│ {label} " in report
    manifest = load_manifest(str(out))
    rows = {row["image_id"]: row for row in manifest.table.to_pylist()}
    assert rows["photo/cup/turned.jpg"]["flags"] == ["exif_rotation"]
    assert (rows["photo/cup/turned.jpg"]["width"], rows["photo/cup/turned.jpg"]["height"]) == (
        40,
        36,
    )
    assert "same_in_two_domains" in rows["sketch/cup/copy.png"]["flags"]
    assert rows["clipart/cup/0.png"]["flags"] is None


@pytest.mark.parametrize("columns", [80, 120])
def test_the_report_fits_the_terminal(images, tmp_path, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    long_name = f"{'x' * 200}.png"
    (images / "photo" / "cup" / long_name).write_bytes(b"")
    main(["--source", str(images), "--out", str(tmp_path / "m")])
    lines = capsys.readouterr().err.splitlines()
    table = [line for line in lines if line.startswith("│")]
    assert len(table) == len(CHECKS) + len(DOMAINS)
    assert max(map(len, table)) <= columns
    zero = next(line for line in table if "zero bytes" in line)
    cells = [cell.strip() for cell in zero.strip("│").split("│")]
    assert cells[:3] == ["zero bytes", "1", "left out"]
    assert "photo/cup/x" in zero


def packed(images, out, **options):
    return ingest(IngestConfig(source=str(images), out=str(out), pack=True, **options))


def test_packed_images_are_untouched_and_where_the_manifest_says(images, tmp_path):
    manifest = packed(images, tmp_path / "m", threads=3)
    loose = ingest(IngestConfig(source=str(images), out=str(tmp_path / "loose")))
    assert manifest.digest == loose.digest
    for row in manifest.table.to_pylist():
        (data,) = read_shard_images(manifest.url, row["shard"], [row["shard_row"]])
        assert data == Path(row["uri"]).read_bytes()
    test_rows = manifest.columns(["shard_row"], manifest.test_rows())["shard_row"].to_pylist()
    assert sorted(test_rows) == list(range(18))  # a test split lies together


def test_shards_do_not_depend_on_threads(images, tmp_path):
    def shards(name, threads):
        packed(images, tmp_path / name, threads=threads, shard_mib=1)
        return {f.name: f.read_bytes() for f in (tmp_path / name / "images").iterdir()}

    assert shards("a", 1) == shards("b", 8)


def test_packed_images_are_reduced_to_the_short_side(images, tmp_path):
    Image.fromarray(noise(0, (100, 300))).save(images / "photo" / "cup" / "wide.jpg")
    manifest = packed(images, tmp_path / "m", pack_short_side=50)
    rows = {row["image_id"]: row for row in manifest.table.to_pylist()}
    wide, small = rows["photo/cup/wide.jpg"], rows["photo/cup/0.png"]
    (data,) = read_shard_images(manifest.url, wide["shard"], [wide["shard_row"]])
    assert Image.open(io.BytesIO(data)).size == (150, 50) == (wide["width"], wide["height"])
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    assert (len(data), hashlib.sha256(data).hexdigest()) == (wide["bytes"], wide["sha256"])
    assert small["sha256"] == hashlib.sha256(Path(small["uri"]).read_bytes()).hexdigest()


def test_replacing_removes_the_shards_of_the_old_manifest_and_stray_ones(images, tmp_path):
    out = tmp_path / "m"
    packed(images, out)
    stray = out / "images" / "00007-0123456789ab.parquet"
    stray.write_bytes(b"left by an ingest that was given up")
    shutil.rmtree(images / "photo" / "cup")
    shutil.copytree(images / "photo" / "star", images / "photo" / "cup")
    manifest = packed(images, out, overwrite=True)
    assert {f"images/{f.name}" for f in (out / "images").iterdir()} == set(
        manifest.table["shard"].to_pylist()
    )


def test_memory_to_memory(images):
    fs = fsspec.filesystem("memory")
    fs.put(str(images), "/ingest-images", recursive=True)
    manifest = packed("memory://ingest-images", "memory://ingest-manifest")
    row = manifest.table.slice(0, 1).to_pylist()[0]
    assert read_shard_images(manifest.url, row["shard"], [row["shard_row"]]) == [
        storage.read_bytes(row["uri"])
    ]


def kill_while_reading(arguments, out):
    """Starts an ingest and kills it as soon as it has saved something."""
    process = start("ingest.py", [*arguments, "--threads", "1"])
    while process.poll() is None and not list(out.glob(".unfinished-*/*.parquet")):
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / CARD_FILE).exists(), "was done before it could be killed"


@pytest.mark.parametrize("options", [[], ["--pack", "--shard-mib", "1"]], ids=["loose", "packed"])
def test_a_killed_ingest_goes_on_and_reads_nothing_twice(tmp_path, options):
    images = tmp_path / "images"
    for d, domain in enumerate(("photo", "sketch")):
        (images / domain / "cup").mkdir(parents=True)
        for i in range(60):
            Image.fromarray(noise(100 * d + i, (160, 200))).save(
                images / domain / "cup" / f"{i}.png"
            )
    out = tmp_path / "m"
    arguments = ["--source", str(images), "--out", str(out), *options]
    undisturbed = IngestConfig(
        source=str(images), out=str(tmp_path / "u"), pack="--pack" in options, shard_mib=1
    )
    expected = ingest(undisturbed)
    kill_while_reading(arguments, out)

    journal = [pq.read_table(part) for part in sorted(out.glob(".unfinished-*/*.parquet"))]
    known = pa.concat_tables(journal)["image_id"].to_pylist()
    assert 0 < len(known) < 120
    originals = {image_id: (images / image_id).read_bytes() for image_id in known}
    for image_id, data in originals.items():
        # Were one read again, it would be no image any more.
        (images / image_id).write_bytes(bytes(len(data)))
    assert main(arguments) == 0
    manifest = load_manifest(str(out))
    assert manifest.digest == expected.digest
    assert manifest.columns(["shard", "shard_row"]).equals(expected.columns(["shard", "shard_row"]))
    assert not list(out.glob(".unfinished-*"))


def test_an_image_that_changed_after_the_kill_is_read_again(images, tmp_path, monkeypatch):
    config = IngestConfig(source=str(images), out=str(tmp_path / "m"))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.write_manifest", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(config)
    Image.fromarray(noise(1, (50, 50))).save(images / "photo" / "cup" / "0.png")
    manifest = ingest(config)
    assert manifest.digest == ingest(config.model_copy(update={"out": str(tmp_path / "n")})).digest


def test_with_packing_a_mended_image_is_packed_in_its_place(tmp_path):
    images = tiny_images(tmp_path / "images", per_cell=6)
    for i in range(30):  # several shards, of which the first ones can stay
        Image.fromarray(noise(i, (160, 200))).save(images / "photo" / "cup" / f"large{i}.png")
    bad = images / "sketch" / "star" / "5.png"
    good = bad.read_bytes()
    options = {"source": str(images), "pack": True, "shard_mib": 1, "shots": 1, "val_shots": 1}
    config = IngestConfig(out=str(tmp_path / "m"), strict=True, **options)
    bad.write_bytes(good[:-100])
    with pytest.raises(UserError, match="checks found something: truncated 1 .sketch/star/5.png"):
        ingest(config)
    assert len(list((tmp_path / "m" / "images").iterdir())) > 2
    bad.write_bytes(good)
    mended = ingest(config)
    undisturbed = ingest(IngestConfig(out=str(tmp_path / "u"), **options))
    assert mended.digest == undisturbed.digest
    names = [{f.name for f in (tmp_path / out / "images").iterdir()} for out in "mu"]
    assert names[0] == names[1]


def test_what_an_interrupted_ingest_says(images, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.ingest.read_all", interrupted)
    assert main(["--source", str(images), "--out", str(tmp_path / "m")]) == 130
    assert "interrupted: the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pack-short-side", "9"], "pack_short_side needs pack"),
        (["--splits", "x"], "splits is for layout split_files, not domain_class"),
        (["--layout", "folders"], "layout = 'folders'"),
    ],
)
def test_options_that_do_not_fit_are_refused(images, tmp_path, capsys, arguments, message):
    line = refused(capsys, "--source", str(images), "--out", str(tmp_path / "m"), *arguments)
    assert message in line


@pytest.mark.skipif(not PACS.is_dir(), reason="needs ../shared/data/pacs (1,400 PACS images)")
def test_pacs_is_ingested_whole(tmp_path):
    manifest = ingest(IngestConfig(source=str(PACS), out=str(tmp_path / "pacs")))
    assert manifest.table.num_rows == 1400
    assert manifest.domains == ("art_painting", "cartoon", "photo", "sketch")
    assert set(manifest.cell_counts("test").values()) == {25}
