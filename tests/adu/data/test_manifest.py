"""Manifests: a digest of the content alone, rows of several files, clear refusals."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adu import storage
from adu.data import rows as manifest_rows
from adu.data.decoded import DataConfig, select_images
from adu.data.manifest import CARD_FILE, load_manifest
from adu.data.writing import content_digest
from adu.errors import UserError
from tests.adu.data.manifests import ids, rows, write


def test_a_manifest_comes_back_as_written(tmp_path):
    written = write(tmp_path / "m", rows())
    loaded = load_manifest(str(tmp_path / "m"))
    assert (loaded.name, loaded.digest) == (written.name, written.digest)
    assert loaded.table.equals(written.table)
    assert (loaded.classes, loaded.domains) == (("cat", "dog"), ("photo", "sketch"))
    assert loaded.cell_counts("train") == {
        (d, c): 4 for d in ("photo", "sketch") for c in ("cat", "dog")
    }


def test_the_digest_ignores_order_and_place_but_no_content():
    digest = content_digest(rows())
    shuffled = rows(prefix="s3://elsewhere/")
    random.Random(0).shuffle(shuffled)
    assert content_digest(shuffled) == digest
    for column in ("domain", "class", "split", "sha256"):
        changed = rows()
        changed[3] = {**changed[3], column: "other"}
        assert content_digest(changed) != digest


def test_files_do_not_depend_on_the_blocks_in_which_rows_come(tmp_path):
    n = 20_000
    table = pa.Table.from_pylist(rows(1)[:1] * n, manifest_rows.SCHEMA)
    names = {"image_id": [f"{i:06}" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)]}
    for name, values in names.items():
        place = table.column_names.index(name)
        table = table.set_column(place, table.field(name), [values])
    whole = write(tmp_path / "whole", iter([table]))
    parts = write(tmp_path / "parts", (table.slice(i, 3001) for i in range(0, n, 3001)))
    assert parts.rows.n_rows == n
    assert [file.url.rsplit("/")[-1] for file in parts.rows.files] == [
        file.url.rsplit("/")[-1] for file in whole.rows.files
    ]


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "has no card.json .write one with"),
        (b"not json", "is not one"),
        (b"{}", "is not one"),
        (b"[]", "is not one"),
        (json.dumps({"schema_version": 99}).encode(), "schema version 99 is newer than 2"),
        (json.dumps({"schema_version": "2"}).encode(), "is not one"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path, card, message):
    if card is not None:
        (tmp_path / CARD_FILE).write_bytes(card)
    with pytest.raises(UserError, match=message):
        load_manifest(str(tmp_path))


def test_an_empty_manifest_is_neither_written_nor_read(tmp_path):
    with pytest.raises(UserError, match="there are no images to write"):
        write(tmp_path / "m", [])
    assert not (tmp_path / "m").exists()
    written = write(tmp_path / "m", rows())
    file = next((tmp_path / "m" / "rows").iterdir())
    pq.write_table(written.table.slice(0, 0), file)
    with pytest.raises(UserError, match="holds no images"):
        load_manifest(str(tmp_path / "m"))


def test_the_card_is_written_last(tmp_path, monkeypatch):
    written, write_bytes = [], storage.write_bytes

    def noted(url, data):
        written.append(url)
        write_bytes(url, data)

    monkeypatch.setattr(storage, "write_bytes", noted)
    write(tmp_path / "m", rows())
    assert written[-1].endswith(CARD_FILE)


def test_replacing_leaves_no_file_of_the_old_one(tmp_path):
    write(tmp_path / "m", rows(per_cell=7))
    write(tmp_path / "m", rows())
    card = json.loads((tmp_path / "m" / CARD_FILE).read_text())
    found = [str(f.relative_to(tmp_path / "m")) for f in tmp_path.rglob("*.parquet")]
    assert found == card["files"]


def test_a_reader_sees_the_old_manifest_until_the_new_one_is_whole(tmp_path, monkeypatch):
    old = write(tmp_path / "m", rows(per_cell=7))
    write_bytes = storage.write_bytes

    def killed_before_the_card(url, data):
        if url.endswith(CARD_FILE):
            raise KeyboardInterrupt
        write_bytes(url, data)

    monkeypatch.setattr(storage, "write_bytes", killed_before_the_card)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "m", rows())
    assert load_manifest(str(tmp_path / "m")).table.equals(old.table)


@pytest.mark.parametrize("names", [["uri"], ["sha256", "class", "flags", "bytes"]])
def test_rows_of_several_files_are_those_of_the_table(split_in_files, names):
    manifest = split_in_files
    assert len(manifest.rows.files) == 3
    wanted = [23, 0, 11, 11, 9, 10]
    assert manifest.columns(names, wanted).equals(
        manifest.table.select(names).take(wanted).combine_chunks()
    )
    assert manifest.columns(names, []).num_rows == 0


def test_a_selection_counts_its_own_rows(split_in_files):
    part = split_in_files.select(["dog"], ["sketch", "photo"]).select(["dog"], ["photo"])
    assert part.n_images == 6
    assert part.columns(["class", "domain"], [5]).to_pylist() == [
        {"class": "dog", "domain": "photo"}
    ]
    assert part.table["image_id"].to_pylist() == [f"photo/dog/{i}.png" for i in range(6)]
    assert ids(part, part.test_rows()) == {"photo/dog/0.png", "photo/dog/1.png"}
    drawn = ids(part, part.few_shot_split(2, 1, 0).train_rows)
    whole = ids(split_in_files, split_in_files.few_shot_split(2, 1, 0).train_rows)
    assert drawn == {image_id for image_id in whole if image_id.startswith("photo/dog")}
    assert part.numbers("class", part.table) == [0] * 6


def test_a_broken_row_file_is_named(tmp_path):
    write(tmp_path, rows())
    next((tmp_path / "rows").iterdir()).write_bytes(b"broken")
    with pytest.raises(UserError, match="manifest file .*parquet: is broken"):
        load_manifest(str(tmp_path))


def test_a_manifest_of_version_1_is_still_read(tmp_path):
    written = write(tmp_path, rows())
    table = written.table.drop_columns(["flags", "shard", "shard_row"])
    (tmp_path / CARD_FILE).unlink()
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    pq.write_table(table, tmp_path / "manifest.parquet")
    names = ["name", "source", "synthetic", "digest", "classes", "domains"]
    card = {"schema_version": 1} | {name: getattr(written, name) for name in names}
    (tmp_path / CARD_FILE).write_text(json.dumps(card))
    loaded = load_manifest(str(tmp_path))
    assert loaded.columns(["image_id", "shard", "flags"], [5, 1]).to_pydict() == {
        "image_id": [table["image_id"][5].as_py(), table["image_id"][1].as_py()],
        "shard": [None, None],
        "flags": [None, None],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, r"is not one .classes = None, allowed: a list of names"),
        ({"classes": [0, 1]}, r"is not one .classes = \[0, 1\], allowed: a list of names"),
        ({"classes": "cat"}, r"is not one .classes = 'cat', allowed: a list of names"),
        ({"domains": ["photo", ""]}, r"is not one .domains = .*, allowed: a list of names"),
        ({"domains": ["photo", "photo"]}, r"is not one .domains = .*, allowed: each name once"),
        ({"files": None}, "is not one"),
        ({"files": 3}, "is not one"),
    ],
)
def test_a_card_that_cannot_be_is_one_line(tmp_path, change, message):
    write(tmp_path, rows())
    card = json.loads((tmp_path / CARD_FILE).read_text())
    (tmp_path / CARD_FILE).write_text(json.dumps(card | change))
    with pytest.raises(UserError, match=message):
        load_manifest(str(tmp_path))


def rewritten(tmp_path, change):
    """A manifest with other rows than were written, as another program may write them."""
    write(tmp_path, rows())
    file = next((tmp_path / "rows").iterdir())
    pq.write_table(change(pq.read_table(file)), file)


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values(table))


@pytest.mark.parametrize("name", ["image_id", "uri", "class", "bytes", "width", "height", "sha256"])
def test_a_missing_column_is_named_when_the_manifest_is_opened(tmp_path, name):
    rewritten(tmp_path, lambda table: table.drop_columns([name]))
    with pytest.raises(UserError, match=f"parquet: lacks the column {name}$"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("class", lambda t: pa.array(range(len(t))), "column class holds int64 .allowed: string"),
        ("domain", lambda t: pa.array([b"x"] * len(t)), "column domain holds binary .allowed: str"),
        (
            "sha256",
            lambda t: pa.array([["x"]] * len(t)),
            "column sha256 holds list<.*> .allow",
        ),
        ("bytes", lambda t: pa.array(["9"] * len(t)), "column bytes holds string .allowed: int64"),
        ("width", lambda t: pa.array([1.5] * len(t)), "column width holds double .allowed: int32"),
    ],
)
def test_columns_of_another_kind_are_named_when_it_is_opened(tmp_path, name, values, message):
    rewritten(tmp_path, with_column(name, values))
    with pytest.raises(UserError, match=f"parquet: {message}"):
        load_manifest(str(tmp_path))


@pytest.mark.parametrize("name", ["image_id", "uri", "class", "domain", "split", "bytes", "width"])
def test_a_cell_that_is_empty_is_named(tmp_path, name):
    values = lambda t: pa.array([*t[name].to_pylist()[:5], None, *t[name].to_pylist()[6:]])  # noqa: E731
    rewritten(tmp_path, with_column(name, values))
    manifest = load_manifest(str(tmp_path))
    with pytest.raises(UserError, match=f"parquet: column {name} is empty in row 5, from 0"):
        _ = manifest.cell_counts("train"), manifest.table


def test_a_shard_without_a_row_in_it_is_named(tmp_path):
    rewritten(tmp_path, with_column("shard", lambda t: pa.array(["images/0"] * len(t))))
    with pytest.raises(UserError, match="column shard_row is empty in row 0, from 0, which has"):
        load_manifest(str(tmp_path)).columns(["shard", "shard_row"])


def test_an_empty_cell_is_counted_over_row_groups(split_in_files):
    file = sorted(Path(split_in_files.url).glob("rows/*"))[1]
    table = pq.read_table(file)
    uris = [*table["uri"].to_pylist()[:-1], None]
    pq.write_table(table.set_column(1, "uri", pa.array(uris)), file, row_group_size=3)
    with pytest.raises(UserError, match="column uri is empty in row 9, from 0"):
        load_manifest(split_in_files.url).columns(["uri"])


@pytest.mark.parametrize(
    ("name", "known"),
    [("class", "cat, dog"), ("domain", "photo, sketch"), ("split", "train, te")],
)
def test_a_name_that_the_card_does_not_have_is_told_with_its_image(tmp_path, name, known):
    values = lambda t: pa.array([*t[name].to_pylist()[:-1], "odd"])  # noqa: E731
    rewritten(tmp_path, with_column(name, values))
    manifest = load_manifest(str(tmp_path))
    with pytest.raises(
        UserError, match=f"image sketch/dog/5.png has the {name} 'odd' .known: {known}"
    ):
        manifest.few_shot_split(1, 1, 0)


def test_strings_and_numbers_of_other_widths_are_read_alike(tmp_path):
    plain = write(tmp_path / "plain", rows())
    rewritten(tmp_path, with_column("class", lambda t: t["class"].cast(pa.large_string())))
    file = next((tmp_path / "rows").iterdir())
    table = with_column("bytes", lambda t: t["bytes"].cast(pa.uint8()))(pq.read_table(file))
    pq.write_table(table, file)
    other = load_manifest(str(tmp_path))
    assert other.table.equals(plain.table)
    assert other.numbers("class", other.table) == plain.numbers("class", plain.table)


def test_a_domain_without_test_images_is_told_before_anything_is_trained(tmp_path):
    its_rows = [{**r, "split": "train"} if r["domain"] == "photo" else r for r in rows()]
    manifest = write(tmp_path, its_rows)
    with pytest.raises(UserError, match="domain photo has no test images"):
        select_images(manifest, DataConfig(manifest=str(tmp_path)))
    # Nobody tests on a domain that is left out.
    left_out = DataConfig(manifest=str(tmp_path), unseen_domains=("photo",))
    assert select_images(manifest, left_out).domains == ("sketch",)


@pytest.mark.parametrize("whole_file_bytes", [0, 2**30])
def test_a_path_below_the_home_folder_is_read(tmp_path, monkeypatch, whole_file_bytes):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(manifest_rows, "WHOLE_FILE_BYTES", whole_file_bytes)
    written = write(tmp_path / "pets", rows())
    assert load_manifest("~/pets").table.equals(written.table)
