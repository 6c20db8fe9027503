"""Listings, DomainNet's lists and class names of any encoding; what is wrong is one line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adu.errors import UserError
from tests.pipeline.ingestion.listed import found_in


def listing_bytes(encoding, separator=","):
    text = "\n".join(
        separator.join(row) for row in (["path", "class", "domain"], ["é.png", "写", "d"])
    )
    return text.encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_listings_encoding_and_separator_are_found(tmp_path, encoding, separator):
    (tmp_path / "list.csv").write_bytes(listing_bytes(encoding, separator))
    (image,) = found_in(str(tmp_path / "list.csv"), "listing")[0]
    assert (image.image_id, image.class_, image.domain) == ("é.png", "写", "d")


COLUMNS = {"path": ["a.png", "b.png"], "class": ["x", "x"], "domain": ["d", "e"]}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("path", pa.array([{"bytes": b"x", "path": "a"}, None])),
        ("class", pa.array([["x"], ["y"]])),
        ("domain", pa.array([{"name": "d"}, {"name": "e"}])),
        ("domain", pa.array([1.5, 2.5])),
        ("class", pa.array([b"x", b"\xff"])),
    ],
)
def test_a_column_of_another_type_is_one_line_that_names_it(tmp_path, column, values):
    table = pa.table({**COLUMNS, column: values})
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(UserError, match=f"column {column} holds .* .allowed: text, integers") as e:
        found_in(str(tmp_path / "list.parquet"), "listing")
    assert "\n" not in str(e.value)


def test_columns_of_numbers_and_of_categories_are_text(tmp_path):
    table = pa.table(
        {
            **COLUMNS,
            "class": pa.array([7, 8]),
            "domain": pa.array(["d", "e"]).dictionary_encode(),
            "other": pa.array([{"a": 1}, None]),
        }
    )
    pq.write_table(table, tmp_path / "list.parquet")
    images = found_in(str(tmp_path / "list.parquet"), "listing")[0]
    assert [(image.class_, image.domain) for image in images] == [("7", "d"), ("8", "e")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('path,class,domain\n"a.png,x,d\n', "unexpected end of data"),
        ("path,class,domain\na.png,x,d,more\n", "row 1: has 4 fields, more than the header's 3"),
        ("path,class,domain,class\na.png,x,d,y\n", "has the column class 2 times"),
        ("one,two\n", "lacks the column path"),
        ("", "lacks the column path"),
        (f"path,class,domain\n{'x' * 200_000},a,b\n", "field larger than field limit"),
    ],
)
def test_what_is_wrong_with_a_listing_is_one_line(tmp_path, text, says):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=says) as error:
        found_in(str(tmp_path / "list.csv"), "listing")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_byte_order_mark_drops_no_image_of_a_split_file(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a_train.txt").write_bytes("a/x/1.jpg 0\r\na/x/2.jpg 0".encode(encoding))
        (tmp_path / "._a_test.txt").write_bytes(b"\x00\x05\x16\x07")
        images = found_in(str(tmp_path), "split_files")[0]
        assert [image.image_id for image in images] == ["a/x/1.jpg", "a/x/2.jpg"]
        assert images[0].uri == f"{tmp_path}/a/x/1.jpg"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"a/x/\xe9.jpg 0", "line 1: byte 0xe9 is not UTF-8"),
        ("a/x/1.jpg ²".encode(), "is not 'path label'"),
        (b"a/x/1.jpg " + b"9" * 5000, "is not 'path label'"),
        (b"../../../etc/hostname 0", "is not 'path label'"),
        (b"a//1.jpg 0", "is not 'path label'"),
        (b"1.jpg 0", "is not 'path label'"),
    ],
)
def test_what_is_wrong_with_a_split_file_is_one_line(tmp_path, line, says):
    (tmp_path / "a_train.txt").write_bytes(line)
    with pytest.raises(UserError, match=says) as error:
        found_in(str(tmp_path), "split_files")
    assert len(str(error.value)) < 300


def test_a_split_file_may_have_tabs_and_names_with_anything_in_them(tmp_path):
    (tmp_path / "a_train.txt").write_text(
        "a/x/1\u2028 2.jpg\t0\na/[x]/3 4.jpg 1\n", encoding="utf-8"
    )
    images = found_in(str(tmp_path), "split_files")[0]
    assert [image.image_id for image in images] == ["a/[x]/3 4.jpg", "a/x/1\u2028 2.jpg"]


def test_class_names_in_another_encoding_are_one_line(tmp_path):
    (tmp_path / "train" / "n01440764").mkdir(parents=True)
    (tmp_path / "train" / "n01440764" / "1.JPEG").write_bytes(b"x")
    names = tmp_path / "names.txt"
    names.write_bytes("n01440764 Schl\xe4fer".encode("latin-1"))
    with pytest.raises(UserError, match="line 1: byte 0xe4 is not UTF-8"):
        found_in(str(tmp_path), "imagenet_sketch", class_names=str(names))
    names.write_bytes("n01440764 Schl\xe4fer".encode("utf-16"))
    (image,) = found_in(str(tmp_path), "imagenet_sketch", class_names=str(names))[0]
    assert image.class_ == "Schl\xe4fer"


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    for domain, form in (("a", "caf\xe9"), ("b", "cafe\u0301")):
        (tmp_path / domain / form).mkdir(parents=True)
        (tmp_path / domain / form / "1.png").write_bytes(b"x")
    images = found_in(str(tmp_path), "domain_class")[0]
    assert {image.class_ for image in images} == {"caf\xe9"}
