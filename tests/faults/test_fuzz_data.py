"""Ten thousand spoilt inputs: each is refused in one line or read rightly, and none is a traceback.

Every input comes from its number alone. ``FUZZ_FROM=1234 make test-faults ARGS="-k fuzz"`` begins
with another one: the one that a failure names, or one that nobody has tried yet.
"""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from adu import storage
from adu.data.manifest import CARD_FILE, load_manifest
from adu.data.reading import check_images, decoded, stored
from adu.data.uris import homes, is_within
from adu.errors import UserError
from adu.storage import is_local, local_path
from pipeline.command import read_yaml
from pipeline.ingest import IngestConfig, ingest
from pipeline.ingestion.checks import CHECKS
from pipeline.ingestion.image_checks import collected_warnings, inspect_image
from pipeline.names import file_name, forget_name, mlflow_name, parse_forget_name
from tests.pipeline.ingestion.listed import found_in
from tests.tiny import tiny_images, tiny_manifest

TOKENS = [
    *(b"\x00", b"\xff", b"\xfe", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r", b"\t", b",", b";"),
    *(b'"', b"'", b"[", b"]", b"{", b"}", b":", b"::", b"://", b"..", b"/", b"//", b"\\", b"~"),
    *(b"*", b"%", b"+", b"-1", b"1e999", b"9" * 400, b"null", b"true", b"NaN", b"!!int ", b"&a"),
    *("é写👩‍🚀\u2028\u202e".encode(), "é".encode("latin-1"), b"\x1b[31m", b"[/x]", b"A" * 400),
]


def spoilt(data: bytes, rng: np.random.Generator) -> bytes:
    """Changes one to four things in some bytes."""
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(0, 7)
        start, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        end = min(end, start + 40)
        token = TOKENS[rng.integers(len(TOKENS))]
        if kind == 0:
            data = data[:start] + rng.bytes(1) + data[start + 1 :]
        elif kind == 1:
            data = data[:start] + data[end:]
        elif kind == 2:
            data = data[:start] + token + data[start:]
        elif kind == 3:
            data = data[:start] + token + data[end:]
        elif kind == 4:
            data = data[:end] + data[start:]
        elif kind == 5:
            data = data[:start]
        else:
            data = data[:start] + bytes(b ^ 1 << int(rng.integers(8)) for b in data[start:end])
    return recoded(data, rng)


def recoded(data: bytes, rng: np.random.Generator) -> bytes:
    """Now and then the same text in another encoding."""
    if rng.random() > 0.1:
        return data
    encoding = ["utf-16", "utf-32", "latin-1", "utf-8-sig", "utf-16-le"][rng.integers(5)]
    return data.decode(errors="replace").encode(encoding, "replace")


def each(n):
    """Numbers and generators of so many inputs."""
    first = int(os.environ.get("FUZZ_FROM", "0"))
    for number in range(first, first + n):
        yield number, np.random.default_rng(number)


def outcome(number, attempt):
    """What came of an input, None if it was refused; anything but a line is a failure."""
    try:
        return attempt()
    except UserError as error:
        # What a name in it is, is shown by whoever prints it; the words around are one line.
        assert str(error), f"input {number}: an empty error"
        assert len(str(error)) < 5000, f"input {number}: {str(error)[:200]}..."
        return None
    except BaseException as error:
        raise AssertionError(f"input {number}: {type(error).__name__}: {error}") from error


def test_names():
    for number, rng in each(1000):
        text = spoilt(b"art_painting,photo", rng).decode(errors="surrogateescape")
        domains = outcome(number, lambda text=text: parse_forget_name(text))
        if domains is not None:
            assert parse_forget_name(forget_name(domains)) == domains
            for domain in domains:
                assert "/" not in file_name(domain) and len(mlflow_name(domain)) <= 80


def test_listings(tmp_path):
    lines = ["path,class,domain,split"]
    for d in ("photo", "sketch"):
        lines += [f'{d}/{c}/{i}.png,"{c}",{d},train' for c in ("cup", "dog") for i in range(3)]
    text = "\n".join(lines).encode()
    columns = {
        name: [line.replace('"', "").split(",")[i] for line in lines[1:]]
        for i, name in enumerate(lines[0].split(","))
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    for number, rng in each(2500):
        kind, data = [("csv", text), ("parquet", buffer.getvalue())][rng.random() < 0.3]
        file = tmp_path / f"list.{kind}"
        file.write_bytes(spoilt(data, rng))
        listed = outcome(number, lambda file=file: found_in(str(file), "listing"))
        if listed is not None:
            check_found(listed, str(tmp_path), number)


def check_found(listed, home, number):
    images, _ = listed
    ids = [image.image_id for image in images]
    assert ids and len(set(ids)) == len(ids) and ids == sorted(ids), f"input {number}"
    for image in images:
        assert image.domain and image.class_ and image.split in (None, "train", "test")
        assert is_within(image.uri, home), f"input {number}: {image.uri}"


def test_split_files(tmp_path):
    text = b"photo/cup/1.jpg 0\nphoto/cup/2 3.jpg 0\r\nphoto/dog/4.jpg\t1\n"
    for number, rng in each(1500):
        (tmp_path / "photo_train.txt").write_bytes(spoilt(text, rng))
        listed = outcome(number, lambda: found_in(str(tmp_path), "split_files"))
        if listed is not None:
            check_found(listed, str(tmp_path), number)


def test_class_names(tmp_path):
    folder = tmp_path / "in" / "train" / "n01440764"
    folder.mkdir(parents=True)
    (folder / "1.JPEG").write_bytes(b"x")
    names = tmp_path / "names.txt"
    for number, rng in each(500):
        names.write_bytes(spoilt(b"n01440764 tench, a fish\nn03126707\tcrane\n", rng))

        def found():
            return found_in(str(tmp_path / "in"), "imagenet_sketch", class_names=str(names)).images[
                0
            ]

        image = outcome(number, found)
        assert image is None or image.class_


def test_yaml(tmp_path):
    text = b"name: pacs\nforget: [sketch, [cartoon, photo]]\nsearch: {trials: 4, seed: 0}\n"
    for number, rng in each(1500):
        file = tmp_path / "file.yaml"
        file.write_bytes(spoilt(text, rng))
        values = outcome(number, lambda file=file: read_yaml(file))
        assert values is None or isinstance(values, dict)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return tiny_manifest(tmp_path_factory.mktemp("fuzz"), per_cell=4)


def use(folder):
    """Opens a manifest and does with it what a search does first."""
    loaded = load_manifest(str(folder))
    loaded.few_shot_split(1, 1, 0)
    check_images(loaded, 2)
    for _ in decoded(loaded, [0], 1, stored(16)):
        pass
    return loaded


def test_cards(manifest, tmp_path):
    folder = shutil.copytree(manifest, tmp_path / "manifest")
    card = (manifest / CARD_FILE).read_bytes()
    for number, rng in each(700):
        (folder / CARD_FILE).write_bytes(spoilt(card, rng))
        outcome(number, lambda: use(folder))


def test_cards_with_other_values(manifest, tmp_path):
    folder = shutil.copytree(manifest, tmp_path / "manifest")
    card = json.loads((manifest / CARD_FILE).read_text())
    values = [None, 0, -1, 1e999, "", "..", "../../x", [], [1], [None], {}, {"a": 1}, "x" * 300]
    for number, rng in each(300):
        key = sorted(card)[rng.integers(len(card))]
        changed = {**card, key: values[rng.integers(len(values))]}
        if rng.random() < 0.2:
            del changed[key]
        (folder / CARD_FILE).write_text(json.dumps(changed))
        outcome(number, lambda: use(folder))


def test_rows(manifest, tmp_path):
    folder = shutil.copytree(manifest, tmp_path / "manifest")
    (file,) = (folder / "rows").iterdir()
    data = file.read_bytes()
    for number, rng in each(500):
        file.write_bytes(spoilt(data, rng))
        outcome(number, lambda: use(folder))


def test_shards(manifest, tmp_path):
    source = load_manifest(str(manifest)).source
    folder = tmp_path / "packed"
    ingest(IngestConfig(source=source, out=str(folder), pack=True))
    (file,) = (folder / "images").iterdir()
    data = file.read_bytes()
    for number, rng in each(300):
        file.write_bytes(spoilt(data, rng))
        outcome(number, lambda: use(folder))


def test_uris_stay_home():
    whole = ["/data/m/images/1.png", "s3://bucket/images/1.png", "file:///data/m/1.png"]
    for number, rng in each(500):
        uri = spoilt(whole[rng.integers(3)].encode(), rng).decode(errors="replace")
        for home in homes("/data/m", "/data/m/images"):
            if outcome(number, lambda uri=uri, home=home: is_within(uri, home)):
                assert is_local(uri)
                assert os.path.normpath(local_path(uri)).startswith("/data/m"), uri


def test_images():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
    encoded = []
    for format_ in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "TGA", "DDS"):
        buffer = io.BytesIO()
        picture.save(buffer, format_)
        encoded.append(buffer.getvalue())
    for number, rng in each(800):
        data = spoilt(encoded[rng.integers(len(encoded))], rng)
        with collected_warnings():
            found = outcome(number, lambda data=data: inspect_image(data, "x", None))
        assert found is not None
        assert (found.problem is None) == (found.width > 0)
        assert found.problem is None or CHECKS[found.problem][1] == "left out"


def test_sources(tmp_path):
    good = tiny_images(tmp_path / "good", per_cell=3)
    for number, rng in each(200):
        source, out = tmp_path / "in", tmp_path / "out"
        shutil.copytree(good, source)
        for _ in range(rng.integers(1, 6)):
            spoil_tree(source, rng)
        manifest = outcome(
            number,
            lambda source=source, out=out: ingest(
                IngestConfig(source=str(source), out=str(out), classes="intersection", threads=2)
            ),
        )
        if manifest is not None:
            card = json.loads((out / CARD_FILE).read_text())
            entries = card["entries"]
            assert entries["found"] == sum(n for name, n in entries.items() if name != "found")
            check_images(manifest, 4)
        shutil.rmtree(source)
        shutil.rmtree(out, ignore_errors=True)


def spoil_tree(source: Path, rng: np.random.Generator) -> None:
    """Adds, breaks, moves or links something below a source."""
    files = sorted(path for path in source.rglob("*.png") if path.is_file())
    file = files[rng.integers(len(files))]
    token = spoilt(b"name", rng).replace(b"/", b"").replace(b"\0", b"")[:200] or b"x"
    new = Path(os.fsdecode(os.fsencode(file.parent) + b"/x" + token))
    kind = rng.integers(0, 10)
    if kind == 0:
        file.write_bytes(spoilt(file.read_bytes(), rng))
    elif kind == 1:
        file.rename(Path(f"{new}.png"))
    elif kind == 2 and not new.exists():
        new.mkdir()
    elif kind == 3 and not new.exists():
        new.symlink_to(file.parent.parent)
    elif kind == 4 and not new.exists():
        os.mkfifo(new)
    elif kind == 5:
        file.unlink()
    elif kind == 6:
        Path(f"{new}.{['heic', 'txt', 'AVIF', 'jpg'][rng.integers(4)]}").write_bytes(token)
    elif kind == 7 and not new.exists():
        new.symlink_to(file.name)
    elif kind == 8:
        shutil.rmtree(file.parent)
        file.parent.mkdir()
        file.write_bytes(b"")
    else:
        (file.parent / f".{'x' * int(rng.integers(1, 90))}").write_bytes(b"")


def test_urls():
    for number, rng in each(500):
        url = spoilt(b"memory://fuzz/folder/file::x", rng).decode(errors="replace")
        if "memory://" in url and "\0" not in url:
            outcome(number, lambda url=url: storage.filesystem_for(url))
