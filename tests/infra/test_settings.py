"""infra/settings.yaml: explained line by line, and a mistake in one's own is one line."""

from __future__ import annotations

import re

import pytest

from infra.cluster.cluster import main
from infra.cluster.settings import SETTINGS, Search, load_settings

LINE = re.compile(r"^( *)([\w-]+):(.*)$")


def test_every_setting_has_its_explanation_beside_it():
    """What a section holds is explained field by field, but for the examples at the end."""
    text = SETTINGS.read_text().split("\nsearches:")[0]
    lines = text.splitlines()
    bare = []
    for number, line in enumerate(lines):
        found = LINE.match(line)
        if not found or not found[3].strip():
            continue
        above = lines[max(number - 2, 0) : number]
        if "#" not in found[3] and not any(text.strip().startswith("#") for text in above):
            bare.append(line.strip())
    assert bare == []


def test_every_field_of_a_search_has_a_default():
    text = SETTINGS.read_text().split("search_defaults:")[1].split("\nsearches:")[0]
    assert set(Search.model_fields) == set(re.findall(r"^  (\w+):", text, re.MULTILINE))


@pytest.fixture
def mine(tmp_path):
    def write(text):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return file

    return write


def test_ones_own_file_goes_over_it(mine):
    settings = load_settings(
        mine(
            "storage: {bucket: 's3://mine'}\n"
            "searches: {pacs-1: {space: search_spaces/pacs.yaml, workers: 2}}\n"
        )
    )
    assert settings.storage.bucket == "s3://mine"
    assert settings.storage.ports == load_settings().storage.ports
    assert settings.searches["pacs-1"].workers == 2
    assert "smoke" in settings.searches


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("naemspace: x", "unknown field 'naemspace'"),
        ("- 1", "not a mapping of settings"),
        ("{", "cannot be read"),
        ("searches: 3", "searches = 3: not a mapping"),
        ("searches: {x: 3}", "searches.x = 3: not a mapping"),
        ("images: {cpu: 'me/adu'}", "images.cpu"),
        ("images: {cpu: 'me/adu:latest'}", "images.cpu"),
        ("storage: {bucket: mine}", "storage.bucket"),
        ("searches: {x: {images_gib: 13}}", "worker_memory_gib = 24"),
        ("searches: {x: {disk_gib: 9}}", "disk_gib = 9: at least 16"),
        ("searches: {x: {min_workers: 1}}", "fewer than workers"),
        ("searches: {x: {workers: 2, min_workers: 0, queue: q}}", "scales itself"),
        ("searches: {x: {schedule: '0 1 * * *'}}", "must end within a day"),
        ("searches: {x: {workers: 40, queue: q}}", "would wait for ever"),
        ("searches: {x: {arguments: ['$(reboot)']}}", "should match pattern"),
        ("searches: {smoke-check: {}}", "Jobs of this project"),
        ("searches: {a-name-of-more-than-thirty-six-characters: {}}", "should match pattern"),
    ],
)
def test_a_mistake_is_one_line(mine, capsys, text, problem):
    code = main(["render", "platform", "--settings", str(mine(text))])
    said = capsys.readouterr()
    assert (code, said.out, said.err.count("\n")) == (2, "", 1)
    assert problem in said.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["render", "search", "nothing"], "searches: no 'nothing' in the settings (there are: "),
        (["render", "search"], "search: name one of the settings"),
        (["render", "platform", "smoke"], "platform: takes no name"),
        (["diff", "model", "nothing"], "models: no 'nothing'"),
    ],
)
def test_a_wrong_name_is_one_line(capsys, words, problem):
    assert main(words) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1) and problem in said.err


def test_a_space_that_is_not_there_is_one_line(mine, capsys):
    file = mine("searches: {x: {space: nothing.yaml}}")
    assert main(["render", "search", "x", "--settings", str(file)]) == 2
    assert capsys.readouterr().err.startswith("error: nothing.yaml: cannot be read")
