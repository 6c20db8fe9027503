"""Odd sources are told: every entry is used, converted or left out with its reason."""

import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from adu import storage
from adu.data.manifest import CARD_FILE, load_manifest
from adu.data.reading import check_images
from pipeline.ingest import IngestConfig, ingest
from pipeline.ingestion.image_checks import inspect_image, perceptual_hash
from tests.faults.test_fuzz_data import spoil_tree
from tests.pipeline import commands
from tests.pipeline.ingestion.listed import found_in
from tests.pipeline.ingests import card_of, check_sums, encoded, found_by, noise, run
from tests.tiny import tiny_images


@pytest.mark.timeout(60)
def test_every_entry_of_a_source_is_used_or_told(images, tmp_path, capsys):
    cup = images / "photo" / "cup"
    for folder in (".git", "@eaDir", "__MACOSX", ".ipynb_checkpoints"):
        (images / folder / "deep").mkdir(parents=True)
        (images / folder / "deep" / "0.png").write_bytes(b"x")
    (cup / "Thumbs.db").write_bytes(b"x")
    (cup / "._0.png").write_bytes(b"x")
    (images / "README.txt").write_text("read me")
    (cup / "phone.HEIC").write_bytes(b"x")
    (cup / "drawing.svg").write_text("<svg/>")
    os.mkfifo(cup / "pipe.png")
    (images / "photo" / "cup" / "again").symlink_to(images / "photo")
    (cup / "self.png").symlink_to(cup / "self.png")
    (cup / "gone.png").symlink_to(cup / "nowhere.png")
    (images / "photo" / "nothing").mkdir()
    os.close(os.open(os.fsencode(cup) + b"/caf\xe9.png", os.O_CREAT | os.O_WRONLY))
    out = tmp_path / "m"
    assert run(images, out, "--shots", "1", "--val-shots", "1") == 0
    assert found_by(out) == {
        "hidden": [
            *(".git", ".ipynb_checkpoints", "@eaDir", "__MACOSX"),
            *("photo/cup/._0.png", "photo/cup/Thumbs.db"),
        ],
        "other_file": ["README.txt"],
        "unknown_format": ["photo/cup/drawing.svg", "photo/cup/phone.HEIC"],
        "broken_name": ["photo/cup/caf\\udce9.png"],
        "not_a_file": ["photo/cup/pipe.png"],
        "link_loop": ["photo/cup/again", "photo/cup/self.png"],
        "empty_folder": ["photo/nothing"],
        "unreadable": ["photo/cup/gone.png"],
    }
    assert check_sums(out) == {"found": 51, "used": 36, "converted": 0, "left_out": 15}
    err = capsys.readouterr().err
    assert "51 entries: 36 used (of them 0 converted), 15 left out" in err
    for reason in (
        "photo/cup/phone.HEIC: is of a format that is not read here",
        "photo/cup/pipe.png: is a pipe, socket or device, not a file",
        "photo/cup/caf\\udce9.png: its name is not UTF-8",
        "photo/cup/again: is a link to a folder that it lies in",
    ):
        assert f"left out: image {reason}" in err


@pytest.mark.parametrize(
    ("check", "spoil"),
    [
        ("hidden", lambda cup: (cup / ".DS_Store").write_bytes(b"")),
        ("other_file", lambda cup: (cup / "notes.txt").write_bytes(b"")),
        ("unknown_format", lambda cup: (cup / "a.heic").write_bytes(b"")),
        ("not_a_file", lambda cup: os.mkfifo(cup / "a.png")),
        ("link_loop", lambda cup: (cup / "a").symlink_to(cup)),
        ("empty_folder", lambda cup: (cup.parent.parent / "more").mkdir()),
        ("unreadable", lambda cup: (cup / "a.png").symlink_to("nowhere")),
        ("zero_byte", lambda cup: (cup / "a.png").write_bytes(b"")),
        ("same_in_one_cell", lambda cup: shutil.copy(cup / "0.png", cup / "a.png")),
        ("frames", lambda cup: animated(cup / "a.gif")),
        ("warned", lambda cup: (cup / "a.jpg").write_bytes(with_broken_exif())),
    ],
)
def test_strict_makes_an_error_of_anything(images, tmp_path, capsys, check, spoil):
    out = tmp_path / "m"
    arguments = ("--shots", "1", "--val-shots", "1", "--test-fraction", "0.01", "--strict")
    assert run(images, tmp_path / "whole", *arguments) == 0
    spoil(images / "photo" / "cup")
    capsys.readouterr()
    assert run(images, out, *arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"checks found something: {check} 1 (" in line or f", {check} 1 (" in line
    assert not (out / CARD_FILE).exists()


def test_a_class_left_out_for_a_domain_that_lacks_it_is_told(images, tmp_path):
    shutil.rmtree(images / "sketch" / "fish")
    for file in (images / "clipart" / "star").iterdir():
        file.write_bytes(b"broken")
    out = tmp_path / "m"
    assert run(images, out, "--classes", "intersection") == 0
    found = found_by(out)
    lacking = card_of(out)["checks"]["class_lacking"]["count"]
    assert lacking == 4 + 4 + 4 + 4  # two domains' fish, and the stars that are not broken
    assert len(found["not_an_image"]) == 4
    assert load_manifest(str(out)).classes == ("cup",)
    check_sums(out)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_a_source_holds_the_numbers_add_up(images, tmp_path, seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        spoil_tree(images, rng)
    out = tmp_path / "m"
    assert run(images, out, "--classes", "intersection") == 0
    check_sums(out)


def test_a_source_whose_own_path_is_no_text_is_one_line(tmp_path, capsys):
    source = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    shutil.copytree(tiny_images(tmp_path / "images", per_cell=2), source)
    assert run(source, tmp_path / "m") == 2
    assert "caf\\udce9: its path is not UTF-8" in capsys.readouterr().err


def test_links_to_folders_and_files_are_followed(images, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (images / "sketch").rename(elsewhere)
    (images / "sketch").symlink_to(elsewhere)
    (elsewhere / "cup" / "0.png").rename(tmp_path / "0.png")
    (elsewhere / "cup" / "0.png").symlink_to(tmp_path / "0.png")
    manifest = ingest(IngestConfig(source=str(images), out=str(tmp_path / "m")))
    assert manifest.n_images == 36
    assert manifest.domains == ("clipart", "photo", "sketch")
    check_images(manifest)


def test_the_same_folder_may_be_linked_twice(images, tmp_path):
    (images / "copy").symlink_to(images / "sketch")
    manifest = ingest(IngestConfig(source=str(images), out=str(tmp_path / "m")))
    assert manifest.domains == ("clipart", "copy", "photo", "sketch")
    assert card_of(tmp_path / "m")["checks"]["same_in_two_domains"]["count"] == 12


def test_a_folder_that_may_not_be_read_is_told(images, monkeypatch, tmp_path):
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("sketch/fish"):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr("os.scandir", scandir)
    _, (left_out,) = found_in(str(images), "domain_class")
    assert (left_out.check, left_out.name) == ("unreadable", "sketch/fish")
    assert left_out.reason == "image sketch/fish: permission denied"


@pytest.mark.parametrize(
    ("suffix", "format_"),
    [
        ("avif", "AVIF"),
        ("jfif", "JPEG"),
        ("JPE", "JPEG"),
        ("tiff", "TIFF"),
        ("webp", "WEBP"),
        ("jp2", "JPEG2000"),
        ("ppm", "PPM"),
        ("tga", "TGA"),
        ("qoi", "QOI"),
        ("dib", "DIB"),
    ],
)
def test_further_formats_are_used(images, tmp_path, suffix, format_):
    (images / "photo" / "cup" / f"more.{suffix}").write_bytes(encoded(format_))
    manifest = ingest(IngestConfig(source=str(images), out=str(tmp_path / "m")))
    assert f"photo/cup/more.{suffix}" in manifest.table["image_id"].to_pylist()
    assert "not_an_image" not in found_by(tmp_path / "m")


def test_a_source_of_formats_that_are_not_read_says_so(tmp_path, capsys):
    for domain in "ab":
        (tmp_path / "in" / domain / "cup").mkdir(parents=True)
        (tmp_path / "in" / domain / "cup" / "1.heic").write_bytes(b"x")
    assert run(tmp_path / "in", tmp_path / "m") == 2
    err = capsys.readouterr().err
    assert "has no images" in err and "left out: unknown_format 2 (a/cup/1.heic)" in err


def test_a_bucket_is_accounted_for_too(images, s3):
    fs = storage.filesystem_for(s3)[0]
    fs.put(str(images), f"{s3.removeprefix('s3://')}/images", recursive=True)
    for key in (".git/config", ".git/deep/0.png", "photo/cup/.0.png", "notes.txt", "a.heic"):
        storage.write_bytes(f"{s3}/images/{key}", b"x")
    listed, left_out = found_in(f"{s3}/images", "domain_class")
    assert len(listed) == 36
    assert [(each.check, each.name) for each in left_out] == [
        ("hidden", ".git"),
        ("unknown_format", "a.heic"),
        ("other_file", "notes.txt"),
        ("hidden", "photo/cup/.0.png"),
    ]


def test_keys_that_are_no_paths_are_told():
    fs = fsspec.filesystem("memory")
    for key in ("a/x/1.png", "b/x/1.png", "a//2.png", "a/../3.png"):
        fs.store[f"/odd-keys/{key}"] = fsspec.implementations.memory.MemoryFile(
            fs, f"/odd-keys/{key}", b"x"
        )
    listed, left_out = found_in("memory://odd-keys", "domain_class")
    assert [image.image_id for image in listed] == ["a/x/1.png", "b/x/1.png"]
    assert {(each.check, each.name) for each in left_out} >= {("broken_name", "a//2.png")}


def animated(file):
    noise(1).save(file, save_all=True, append_images=[noise(2)])


def with_broken_exif():
    """A JPEG whose EXIF data promise more than they hold, so that Pillow warns."""
    tiff = b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", 1)
    tiff += struct.pack("<HHII", 0x010F, 2, 1000, 26) + b"\0\0\0\0"
    exif = b"Exif\x00\x00" + tiff
    data = encoded("JPEG", quality=95)
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def test_what_the_decoder_warns_of_has_the_images_name_and_stays_off_the_terminal(
    images, tmp_path, capfd
):
    for domain in ("photo", "sketch"):
        (images / domain / "cup" / "exif.jpg").write_bytes(with_broken_exif())
    out = tmp_path / "m"
    assert run(images, out, "--shots", "1", "--val-shots", "1") == 0
    err = capfd.readouterr().err
    examples = found_by(out)["warned"]
    assert [example.split(": ")[0] for example in examples] == [
        "photo/cup/exif.jpg",
        "sketch/cup/exif.jpg",
    ]
    assert "Skipping tag" in examples[0]
    assert "UserWarning" not in err and "site-packages" not in err


def test_what_libtiff_writes_itself_stays_off_the_terminal(images, tmp_path):
    good = encoded("TIFF", compression="tiff_lzw")
    at = good.index(b"\x80\x00") if b"\x80\x00" in good[8:] else 20
    for i in range(40):
        data = bytearray(good)
        data[at + 10 * i] ^= 0xFF
        (images / "photo" / "cup" / f"lzw{i}.tif").write_bytes(bytes(data))
    code, _, err = commands.run(
        "ingest.py", ["--source", str(images), "--out", str(tmp_path / "m"), "--threads", "1"]
    )
    assert code == 0
    assert sum("tempfile.tif" in line for line in err.splitlines()) == 1
    assert "decoders wrote " in err
    assert "left out: image photo/cup/lzw" in err


@pytest.mark.parametrize("where", ["2>/dev/full", "2>&-", ">&- 2>&-"])
def test_a_terminal_that_is_gone_keeps_no_manifest_from_being_written(images, tmp_path, where):
    script = Path(commands.ROOT) / "pipeline" / "ingest.py"
    for out, code in ((tmp_path / "m", 0), (tmp_path / "m", 2)):
        command = f"{sys.executable} {script} --source {images} --out {out} {where}"
        assert subprocess.run(["bash", "-c", command], timeout=120).returncode == code
        assert load_manifest(str(out)).n_images == 36


def test_a_terminal_without_the_characters_of_a_name_shows_escapes(images, tmp_path):
    (images / "photo").rename(images / "\u5199\u771f")
    code, _, err = commands.run(
        "ingest.py",
        ["--source", str(images), "--out", str(tmp_path / "m")],
        PYTHONIOENCODING="ascii",
        COLUMNS="120",
    )
    assert code == 0 and "\\u5199\\u771f" in err


def test_an_output_below_its_source_is_no_part_of_it(images, tmp_path, capsys):
    out = images / "manifest"
    arguments = ("--shots", "1", "--val-shots", "1", "--pack", "--strict")
    assert run(images, out, *arguments) == 0
    assert run(images, out, *arguments, "--overwrite") == 0
    assert check_sums(out)["left_out"] == 0


def interrupted(config, monkeypatch):
    """An ingest that is stopped when all is read and nothing written; the parts of its journal."""
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ingest.write_manifest", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingest(config)
    return list(Path(config.out).glob(".unfinished-*/*.parquet"))


def test_a_warning_outlives_a_kill(images, tmp_path, monkeypatch):
    (images / "photo" / "cup" / "exif.jpg").write_bytes(with_broken_exif())
    config = IngestConfig(source=str(images), out=str(tmp_path / "m"))
    assert interrupted(config, monkeypatch)
    monkeypatch.setattr("pipeline.ingestion.image_reader.inspect_image", None)
    ingest(config)
    assert len(found_by(config.out)["warned"]) == 1


def test_what_is_damaged_of_a_journal_is_read_again(images, tmp_path, monkeypatch):
    config = IngestConfig(source=str(images), out=str(tmp_path / "m"))
    part = interrupted(config, monkeypatch)[0]
    part.with_name("notes.parquet").write_bytes(b"not ours")
    part.write_bytes(part.read_bytes()[:-50])
    assert ingest(config).n_images == 36


def test_the_first_frame_of_several_is_used_and_told(images, tmp_path):
    animated(images / "photo" / "cup" / "moving.gif")
    manifest = ingest(IngestConfig(source=str(images), out=str(tmp_path / "m")))
    rows = {row["image_id"]: row for row in manifest.table.to_pylist()}
    assert "frames" in rows["photo/cup/moving.gif"]["flags"]
    data = (images / "photo" / "cup" / "moving.gif").read_bytes()
    first = Image.open(io.BytesIO(data)).convert("RGB")
    assert inspect_image(data, "x").phash == perceptual_hash(first)
    assert check_sums(tmp_path / "m")["converted"] == 1


def test_what_a_layout_has_no_use_for_is_counted_and_has_its_reason(tmp_path):
    names = ["CALTECH/train/0/1.png", "CALTECH/full/0/1.png", "CALTECH/test/0/2.png"]
    names += ["SUN/train/0/3.png", "SUN/crossval/0/4.png", "SUN/test/0/5.png"]
    for seed, name in enumerate(names):
        file = tmp_path / "vlcs" / name
        file.parent.mkdir(parents=True)
        noise(seed).save(file)
    out = tmp_path / "m"
    assert run(tmp_path / "vlcs", out, "--layout", "vlcs") == 0
    assert check_sums(out) == {"found": 6, "used": 5, "converted": 0, "left_out": 1}
    assert load_manifest(str(out)).cell_counts("train") == {
        ("caltech", "bird"): 1,
        ("sun", "bird"): 2,
    }
    reason = "folder CALTECH/full: holds the images of train and crossval once more"
    assert card_of(out)["rejected"] == [{"image_id": "CALTECH/full", "reason": reason}]
