"""A tiny search as a configuration, for tests of the command."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipeline.search import main
from tests.tiny import N_BLOCKS

N_TRIALS = 4


def config(folder: Path, epochs: int = 4, trials: int = N_TRIALS) -> dict:
    return {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(folder / "model")},
            "data": {"manifest": str(folder / "manifest"), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": epochs, "batch_size": 8},
        "space": {
            "method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30},
            "method.lambda": {"low": 0.1, "high": 30, "log": True, "default": 10},
            "method.n_ctx": {"choices": [1, 2], "default": 2},
            "method.instapg_layer": {"low": 1, "high": N_BLOCKS - 2, "default": 2},
            "train.lr": {"low": 0.001, "high": 0.1, "log": True, "default": 0.0025},
        },
        "search": {
            "trials": trials,
            "startup_trials": 2,
            "grace_epochs": 1,
            "reduction_factor": 2,
            "race": 2,
            "tries": 1,
        },
        "final": {"seeds": [0, 1]},
        "resources": {"executors": 2},
        "output": str(folder / "results" / "out"),
    }


def write_config(file: Path, values: dict) -> str:
    file.write_text(yaml.safe_dump(values))
    return str(file)


def refused(capsys, *arguments) -> str:
    """Runs the command, expecting exit code 2 and one line; returns the line."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]
