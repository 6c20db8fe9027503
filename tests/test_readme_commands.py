"""Every command of every README is one that the commands take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipeline import evaluate, ingest, prove, report, reproduce, search, track, train
from pipeline.command import load_config
from pipeline.jobs.config import SHORTCUTS, SearchConfig
from pipeline.jobs.table_plan import ReproduceConfig

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "evaluate": (evaluate.EvaluateConfig, evaluate.SHORTCUTS),
    "ingest": (ingest.IngestConfig, ingest.SHORTCUTS),
    "prove": (prove.ProveConfig, prove.SHORTCUTS),
    "report": (report.ReportConfig, {}),
    "reproduce": (ReproduceConfig, reproduce.SHORTCUTS),
    "search": (SearchConfig, SHORTCUTS),
    "track": (track.TrackConfig, track.SHORTCUTS),
    "train": (train.TrainCommandConfig, train.SHORTCUTS),
}
CALL = re.compile(r"python pipeline/(\w+)\.py((?: [^`|#\n]*|\\\n)*)")
MAKE = re.compile(r'make search ARGS="([^"]*)"')


def calls() -> list[tuple[str, str, str]]:
    found = []
    for file in sorted(ROOT.rglob("README.md")):
        if ".venv" in file.parts or "results" in file.parts:
            continue
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        name = str(file.relative_to(ROOT))
        found += [(name, script, arguments) for script, arguments in CALL.findall(text)]
        found += [(name, "search", arguments) for arguments in MAKE.findall(text)]
    return [call for call in found if not re.search(r"\.\.\.|--help", call[2])]


@pytest.mark.parametrize(("file", "script", "arguments"), calls())
def test_a_command_of_a_readme_is_understood(file, script, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    config_class, shortcuts = COMMANDS[script]
    words = shlex.split(arguments)
    if script == "reproduce" and words and not words[0].startswith("-"):
        words = ["--table", *words]
    if script == "search" and "--config" not in words:
        words = ["--config", str(search.DEFAULT_CONFIG), *words]
    words = ["search_spaces/pacs.yaml" if word == "FILE" else word for word in words]
    load_config(config_class, shortcuts, words)


def test_there_are_some():
    assert len(calls()) > 10


def test_the_flags_in_the_readmes_tables_are_flags():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    flags = {flag for row in rows for flag in re.findall(r"`(--[a-z-]+)", row.split("|")[1])}
    known = set()
    for config_class, shortcuts in COMMANDS.values():
        known |= {f"--{short}" for short in shortcuts.values()}
        known |= {f"--{name.replace('_', '-')}" for name in config_class.model_fields}
    assert flags and flags <= known, flags - known
