"""`pipeline/reproduce.py`: which runs a table has, and a whole one on the tiny model."""

import json

import pytest

from adu.errors import UserError
from pipeline.reproduce import main
from pipeline.tables import ABLATION, MAIN, TABLES, table_rows
from tests.pipeline import commands
from tests.tiny import DOMAINS, tiny_backbone, tiny_manifest


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    backbone, manifest = tiny_backbone(folder / "model"), tiny_manifest(folder)
    return [
        *("--backbone", str(backbone), "--manifest", str(manifest)),
        *(
            "--shots",
            "2",
            "--context.data.val-shots",
            "1",
            "--epochs",
            "1",
            "--train.warmup-epochs",
            "0",
        ),
        *("--seeds", "[0,1]", "--method.n-ctx", "2"),
    ]


def test_the_main_table_has_every_method_on_every_size_of_forget_set():
    rows = table_rows("main", "pacs", n_domains=4, n_blocks=12)
    assert len({row.label for row in rows}) == len(MAIN) * 3
    assert {row.size for row in rows} == {1, 2, 3}
    assert len(rows[0].forget_sets(("a", "b", "c", "d"))) == 4
    assert all(row.published == (None, None, None) for row in rows)


def test_published_figures_stand_beside_their_own_data_set_only():
    rows = {row.label: row for row in table_rows("main", "Office-Home", 4, 12)}
    assert rows["ADU, 1 of 4"].published == (69.96, 77.93, 64.34)
    assert rows["ADU, 2 of 4"].published == (None, None, None)
    ablation = {row.label: row.published[0] for row in table_rows("ablation", "office_home", 4, 12)}
    assert list(ablation) == list(ABLATION)
    assert sorted(ablation.values()) == list(ablation.values())


def test_the_depth_table_ends_with_the_tower():
    labels = [row.label for row in table_rows("depth", "pacs", 4, n_blocks=4)]
    assert labels == ["depth 1", "depth 2", "depth 3", "depth 4"]


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(UserError, match=f"table 'shots': unknown \\(known: {', '.join(TABLES)}"):
        table_rows("shots", "pacs", 4, 12)


def test_a_whole_table_is_run_and_kept(flags, tmp_path, capfd):
    output = tmp_path / "out"
    arguments = ["ablation", *flags, "--output", str(output)]
    code, out, err = commands.run("reproduce.py", arguments)
    assert code == 0, out + err
    assert len(list((output / "rows").iterdir())) == len(ABLATION)
    record = json.loads((output / "rows" / "All.json").read_text())
    asked = {(domain, seed) for domain in DOMAINS for seed in (0, 1)}
    assert {(run["forget"], run["seed"]) for run in record["runs"]} == asked
    assert out.count("±") == 3 * len(ABLATION)

    # With nothing left to do, the same table at once and without a cluster.
    assert main([*arguments, "--resume"]) == 0
    again = capfd.readouterr().out
    assert again[again.index("│") : again.rindex("│")] in out
    assert main([*arguments, "--resume", "--seeds", "[0]"]) == 2
    assert "holds another search: seeds is [0, 1] there" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables"], "table 'tables': unknown (known: main, ablation, sensitivity, depth)"),
        (["main", "--sizes", "[7]"], "the main table has no such forget sets (allowed: 1, 2)"),
        ([], "field 'table' is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, tmp_path, capsys, arguments, message):
    output = tmp_path / "out"
    assert main([*arguments, *flags, "--output", str(output)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()
