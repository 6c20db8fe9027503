"""Names are data: no text leads out of a folder, none is taken for another, all can be typed."""

import doctest
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_model_name

from adu.errors import UserError
from pipeline import names
from pipeline.names import (
    MAX_NAME_LENGTH,
    file_name,
    forget_name,
    mlflow_name,
    parse_forget_name,
    shown,
)

ODD = [
    *("", ".", "..", "../../victim", "/etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "~", "con"),
    *("[x]", "[/x]", "'quoted'", '"quoted"', "50%", "a+b", "a,b", "a:b", "a::b", "*", "?", "$(x)"),
    *("写真", "素描", "рисунок", "صورة", "👩‍🚀", "café", "cafe\u0301", "Real World", "x" * 300),
    *("a\nb", "a\x00b", "\x1b[31mred", "caf\udce9", " ", "a ", "a.json", "name-0123456789ab"),
    *("0123456789ab", "x" * 80, "x" * 81, "Photo", "photo"),
]
# Characters that mean something to somebody, beside all others.
SPECIAL = "+,\\/.-_~[]{}'\"%:*? \n\x00\x1b\udce9é写ab01"
TEXTS = st.text() | st.text(st.sampled_from(SPECIAL)) | st.sampled_from(ODD)
DOMAIN_SETS = st.lists(TEXTS.filter(bool), min_size=1, max_size=3).map(tuple)


def test_the_examples_in_the_documentation_are_right():
    assert doctest.testmod(names).failed == 0


@pytest.mark.parametrize("name", [file_name, mlflow_name])
@given(one=TEXTS, other=TEXTS)
def test_two_texts_never_have_one_name(name, one, other):
    assert (name(one) == name(other)) == (one == other)
    # Nor is the name that a text was given free for another text.
    assert name(one) == one or name(name(one)) != name(one)


@given(TEXTS)
def test_a_file_name_is_one_harmless_part_of_a_path(text):
    name = file_name(text)
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", name)
    assert len(name) <= MAX_NAME_LENGTH
    assert Path("folder", name).name == name


def test_files_of_odd_names_lie_side_by_side_in_their_folder():
    with tempfile.TemporaryDirectory() as folder:
        inside = Path(folder) / "inside"
        inside.mkdir()
        for text in ODD:
            # As a study has both.
            (inside / file_name(text)).mkdir()
            (inside / f"{file_name(text)}.json").write_text(repr(text))
        assert len(list(inside.iterdir())) == 2 * len(set(ODD))
        assert list(Path(folder).iterdir()) == [inside]


@given(TEXTS)
def test_mlflow_takes_every_name(text):
    _validate_metric_name(f"test/accuracy/{mlflow_name(text)}")
    _validate_metric_name(mlflow_name(text))
    _validate_model_name(mlflow_name(text))


@pytest.mark.parametrize("text", ["art_painting", "t-shirt", "007", "cartoon+photo"])
def test_plain_names_stand_for_themselves(text):
    assert file_name(text) == text
    assert mlflow_name(text) == text or "+" in text


def test_what_can_be_read_stays_readable():
    assert file_name("Real World").startswith("Real_World-")
    assert file_name("../café").startswith("cafe-")
    assert mlflow_name("写真") != mlflow_name("素描")


@given(DOMAIN_SETS)
@example(("a+b",))
@example(("a", "b"))
@example(("a\\", "b"))
def test_a_forget_set_comes_back_from_its_name(domains):
    assert parse_forget_name(forget_name(domains)) == domains


@given(DOMAIN_SETS, DOMAIN_SETS)
@example(("a+b",), ("a", "b"))
@example(("a,b",), ("a", "b"))
def test_two_forget_sets_never_have_one_name(one, other):
    assert (forget_name(one) == forget_name(other)) == (one == other)


def test_a_forget_set_is_typed_with_commas_or_plus():
    assert parse_forget_name("a,b") == parse_forget_name("a+b") == ("a", "b")
    assert parse_forget_name(r"a\,b,[x]") == ("a,b", "[x]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "forget set '': holds an empty name"),
        ("a,,b", "forget set 'a,,b': holds an empty name"),
        ("a,", "forget set 'a,': holds an empty name"),
        ("a\\", "forget set 'a\\': nothing follows its last backslash"),
    ],
)
def test_a_forget_set_that_names_nothing_is_one_line(text, says):
    with pytest.raises(UserError) as error:
        parse_forget_name(text)
    assert str(error.value) == says


@given(TEXTS)
def test_what_is_shown_is_one_line_that_can_be_printed(text):
    line = shown(text)
    assert line.splitlines() == ([line] if line else [])
    assert "\x1b" not in line
    line.encode()


@pytest.mark.parametrize("text", ["[x]", "[/x]", "a:car:b", "写真", "👩‍🚀", "50% 'of' \"it\""])
def test_any_script_and_any_punctuation_is_shown_as_it_is(text):
    assert shown(text) == text
