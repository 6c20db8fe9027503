"""Rows stay home: what a manifest may have opened, and what not."""

from dataclasses import replace
from pathlib import Path

import pytest

from adu import storage
from adu.data.decoded import DataConfig, select_images
from adu.data.images import decode_image
from adu.data.manifest import load_manifest
from adu.data.reading import check_images, decoded, stored
from adu.data.uris import homes, is_within
from adu.data.writing import write_manifest
from adu.errors import UserError
from tests.tiny import tiny_manifest


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return load_manifest(str(tiny_manifest(tmp_path_factory.mktemp("home"))))


def with_uri(manifest, folder, uri):
    """The same images, of which one is said to lie elsewhere."""
    rows = manifest.table.to_pylist()
    rows[7]["uri"] = uri
    return write_manifest(str(folder), rows, name="odd", source=manifest.source)


def read(manifest, row):
    return list(decoded(manifest, [row], 1, stored(64)))


ELSEWHERE = [
    "file:///etc/hostname",
    "/etc/hostname",
    "local:///etc/hostname",
    "http://127.0.0.1/x.png",
    "https://example.com/x.png",
    "s3://bucket/x.png",
    "simplecache::s3://bucket/x.png",
    "zip://a::file:///b.zip",
    "data:image/png;base64,AAAA",
    "memory://x",
    "../../x.png",
    "",
]


@pytest.mark.parametrize("uri", ELSEWHERE)
def test_a_row_that_leads_elsewhere_is_one_line_before_anything_is_opened(
    manifest, tmp_path, uri, monkeypatch
):
    odd = with_uri(manifest, tmp_path / "manifest", uri)
    monkeypatch.setattr(storage, "filesystem_for", lambda url: pytest.fail(f"opened {url}"))
    for use in (check_images, lambda odd: read(odd, 7)):
        with pytest.raises(UserError, match="its image '.*' lies elsewhere") as error:
            use(odd)
        assert "\n" not in str(error.value)


def test_a_path_that_climbs_out_of_the_source_is_refused(manifest, tmp_path):
    climbing = f"{manifest.source}/../../../etc/hostname"
    with pytest.raises(UserError, match="lies elsewhere"):
        check_images(with_uri(manifest, tmp_path / "manifest", climbing))


def test_who_uses_a_manifest_may_allow_more(manifest, tmp_path):
    elsewhere = tmp_path / "elsewhere" / "0.png"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(Path(manifest.table["uri"][7].as_py()).read_bytes())
    odd = with_uri(manifest, tmp_path / "manifest", str(elsewhere))
    allowed = select_images(odd, DataConfig(allow_uri=(str(elsewhere.parent),)))
    check_images(allowed)
    assert len(read(allowed, 7)) == 1
    for other in (str(tmp_path / "else"), "s3://bucket"):
        with pytest.raises(UserError, match="lies elsewhere"):
            check_images(replace(odd, allow_uri=(other,)))


def test_a_relative_row_starts_from_the_manifest(manifest, tmp_path):
    for i, uri in enumerate(("pictures/a:1.png", "pictures/b://1.png", "pictures/b::s3://x/1.png")):
        folder = tmp_path / f"manifest{i}"
        odd = with_uri(manifest, folder, uri)
        (folder / uri).parent.mkdir(parents=True)
        (folder / uri).write_bytes(Path(manifest.table["uri"][7].as_py()).read_bytes())
        assert len(read(odd, 7)) == 1


def test_what_a_packed_image_was_called_is_not_opened(manifest, tmp_path):
    rows = [
        row | {"uri": "http://127.0.0.1/x", "shard": "images/x.parquet", "shard_row": 0}
        for row in manifest.table.to_pylist()
    ]
    packed = write_manifest(str(tmp_path), rows, name="packed", source=manifest.source)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.parquet").write_bytes(b"")
    check_images(packed)


@pytest.mark.parametrize("shard", ["../x.parquet", "/x.parquet", "images/../../x.parquet", ""])
def test_a_shard_lies_in_the_manifest(manifest, tmp_path, shard):
    rows = [row | {"shard": shard, "shard_row": 0} for row in manifest.table.to_pylist()]
    odd = write_manifest(str(tmp_path / "m"), rows, name="odd", source=manifest.source)
    for use in (check_images, lambda odd: read(odd, 0)):
        with pytest.raises(UserError, match="which does not lie in it"):
            use(odd)


def test_replacing_a_manifest_removes_nothing_outside_of_it(manifest, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    card = tmp_path / "m" / "card.json"
    card.parent.mkdir()
    card.write_text('{"files": ["../victim"], "shards": ["../victim"]}')
    with pytest.raises(UserError, match="which does not lie in it"):
        write_manifest(str(card.parent), manifest.table, name="n", source=manifest.source)
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("url", "source", "places"),
    [
        ("s3://bucket/deep/m", "s3://other/images", ("s3://bucket",)),
        ("/m", "/images", ("/m", "/images")),
        ("/m", "/data/list.CSV", ("/m", "/data")),
        ("file:///m", "s3://bucket/images", ("/m",)),
        ("/m", "/", ("/m",)),
        ("/m", "", ("/m",)),
    ],
)
def test_home_is_the_bucket_or_the_folder_and_the_source(url, source, places):
    assert homes(url, source) == places


@pytest.mark.parametrize(
    ("uri", "prefix", "within"),
    [
        ("s3://bucket/x", "s3://bucket", True),
        ("s3a://bucket/x", "s3://bucket/", True),
        ("s3://bucket2/x", "s3://bucket", False),
        ("s3://bucket/x/../../other/y", "s3://bucket", False),
        ("s3://bucket//x", "s3://bucket", False),
        ("/a/b", "/a", True),
        ("/ab", "/a", False),
        ("/a/../b", "/a", False),
        ("/a/b/../c", "/a", True),
        ("file:///a/b", "/a", True),
        ("/a/b", "/", True),
        ("https://x.org/y", "https://", True),
        ("http://x.org/y", "https://", False),
        ("s3://b/a::b", "s3://b", True),
        ("simplecache::s3://b/x", "s3://b", False),
        ("/a/b://c", "/a", True),
        ("/a/b://../../../c", "/a", False),
    ],
)
def test_what_lies_within_a_prefix(uri, prefix, within):
    assert is_within(uri, prefix) is within


def test_a_path_in_place_of_an_images_bytes_is_not_opened(manifest):
    # As somebody may send it to the served model.
    path = manifest.table["uri"][0].as_py()
    with pytest.raises(UserError, match="image 0: cannot be decoded"):
        decode_image(path, "0")
