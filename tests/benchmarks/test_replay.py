"""The recorder and the replay, on a table of a few runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from adu.training.config import RunConfig, TrainConfig
from tests.benchmarks.replay import Recorded, Replay, Rule, demo_options, draw, replay_all, shown
from tests.benchmarks.runs import read_lines
from tests.benchmarks.signal_table import (
    SEEDS,
    configurations,
    pack,
    packed_runs,
    record_run,
    tasks,
)
from tests.tiny import tiny_context

N, EPOCHS = 8, 6
DOMAINS = ("clipart", "sketch")
OPTIONS = demo_options()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Made up: the higher the number, the better, but for the luck of a single seed."""
    folder = tmp_path_factory.mktemp("signal")
    rng = np.random.default_rng(0)
    drawn = configurations(OPTIONS["space"], OPTIONS["base"], N)
    runs = []
    for task in tasks(N, DOMAINS):
        noise = rng.normal(0, 0.05)
        rows = []
        for epoch in range(1, EPOCHS + 1):
            h = 0.4 + 0.05 * task.number + 0.01 * epoch
            scores = {"val": h + noise, "quick": h + 3 * noise, "test": h}
            row = {
                f"{kind}_{name}": v for kind, v in scores.items() for name in ("h", "mem", "for")
            }
            rows.append({"epoch": epoch, "seconds": 0.1, **row})
        runs.append({**vars(task), "params": drawn[task.number], "rows": rows})
    half = len(runs) // 2
    for place, some in (("1", runs[:half]), ("2", runs)):
        (folder / place).mkdir()
        for part in (1, 2):
            lines = [json.dumps(run) for run in some[part - 1 :: 2]]
            # As a recorder that was killed leaves it.
            file = folder / place / f"signal-{part}-of-2.jsonl"
            file.write_text("\n".join([*lines, '{"number": 3']))
    # In two parts, of which the second has the first half's runs once more.
    for part in (1, 2):
        pack(folder / str(part), folder / "table.parquet")
    assert len(packed_runs(folder / "table.parquet")) == len(runs)
    return Recorded(folder / "table.parquet")


def test_the_table_holds_what_was_recorded(table):
    assert table.h["val"].shape == (len(DOMAINS), N, len(SEEDS), EPOCHS)
    assert table.truth[0] == pytest.approx([0.46 + 0.05 * number for number in range(N)], abs=1e-6)
    space = OPTIONS["space"]
    assert table.params[0] == {p: v.default for p, v in space.items() if v.active(table.params[0])}


def test_a_replay_spends_what_a_search_would(table):
    replay = Replay(table, Rule("random", race=2), 0, seed=1, **OPTIONS)
    replay.trial()
    # The defaults, all epochs of them; a race of one has a further look at it alone.
    assert replay.epochs == EPOCHS
    assert replay.choose() == (0, 2 * EPOCHS)
    for _ in range(N - 1):
        replay.trial()
    assert EPOCHS * 2 < replay.epochs < EPOCHS * N


def test_more_images_and_seeds_have_less_regret(table):
    rules = {"few": Rule("random", "quick", 1), "all": Rule("random", "val", 3)}
    found = replay_all(table, rules, 50, OPTIONS)
    last = {name: values[:, -1, 1].mean() for name, values in found.items()}
    assert last["all"] < last["few"]


def test_every_rule_is_replayed_shown_and_drawn(table, tmp_path):
    transfers = ("none", "siblings", "portfolio", "hurdles", "residual")
    rules = {how: Rule("tpe", transfer=how) for how in transfers}
    found = replay_all(table, rules, 2, OPTIONS)
    draw(found, tmp_path / "regret.png")
    assert (tmp_path / "regret.png").stat().st_size > 10_000
    assert shown(found).row_count == len(rules)
    # What is best elsewhere is best here too.
    for how in ("siblings", "residual"):
        assert found[how][:, 0, 1].mean() < found["none"][:, 0, 1].mean()
    assert (found["hurdles"][:, -1, 0] <= found["siblings"][:, -1, 0]).all()


def test_a_run_is_recorded_by_epochs(tmp_path):
    context = tiny_context(tmp_path, val_shots="all", quick_val_shots=1)
    run = RunConfig(forget=("sketch",), train=TrainConfig(epochs=2, batch_size=6))
    rows = record_run(run, context)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"val_h", "quick_h", "test_h", "val_mem", "test_for"} <= rows[0].keys()
    assert read_lines([tmp_path / "nothing"]) == []
