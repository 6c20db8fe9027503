"""`pipeline/reproduce.py`: which runs a table has, and a whole one on the tiny model."""

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from rich.console import Console

from adu import storage
from adu.data.decoded import DataConfig
from adu.data.manifest import load_manifest
from adu.errors import UserError
from pipeline.jobs.table_plan import ReproduceConfig, TablePlan, enough_images
from pipeline.reproduce import _table, main
from pipeline.results.tables import ABLATION, MAIN, TABLES, compared_with, table_rows
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
    assert not any(row.published for row in rows)


def test_published_figures_stand_beside_their_own_data_set_only():
    rows = {row.label: row for row in table_rows("main", "Office-Home", 4, 12)}
    assert rows["ADU, 1 of 4"].published == {"h": 69.96, "mem": 77.93, "for": 64.34}
    assert rows["ADU, 2 of 4"].published == {}
    assert rows["Baseline, 3 of 4"].published == {"h": 59.47}
    rows = {row.label: row.published["h"] for row in table_rows("ablation", "office_home", 4, 12)}
    assert list(rows) == list(ABLATION)
    assert sorted(rows.values()) == list(rows.values())


def test_the_shots_table_has_the_baseline_and_adu_for_each_number():
    rows = table_rows("shots", "pacs", 4, 12)
    assert [row.shots for row in rows if row.method["name"] == "adu"] == [1, 2, 4, 8, 16]
    assert [row.shots for row in rows if row.method["name"] == "baseline"] == [1, 2, 4, 8, 16]


def test_the_depth_table_ends_with_the_tower():
    labels = [row.label for row in table_rows("depth", "pacs", 4, n_blocks=4)]
    assert labels == ["depth 1", "depth 2", "depth 3", "depth 4"]


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_table_is_a_valid_configuration_of_its_own(tmp_path, table):
    manifest = SimpleNamespace(name="pacs", synthetic=False, domains=("a", "b", "c", "d"))
    rows = tuple(table_rows(table, "pacs", 4, n_blocks=12))
    plan = TablePlan(ReproduceConfig(table=table, seeds=(0,)), manifest, rows, str(tmp_path))
    found = {(row.shots, str(plan.configs(row))) for row in rows}
    # The defaults stand on both curves of the sensitivity.
    assert len(found) == len(rows) or table == "sensitivity"
    assert len({row.label for row in rows}) == len(rows)


def test_a_table_of_methods_has_other_sizes_of_forget_sets_if_asked_for():
    rows = table_rows("ablation", "office_home", 4, 12, sizes=(1, 3), only=("Baseline", "All"))
    labels = ["Baseline", "All", "Baseline, 3 of 4", "All, 3 of 4"]
    assert [row.label for row in rows] == labels
    assert [row.base for row in rows] == [None, "Baseline", None, "Baseline, 3 of 4"]
    assert [len(row.forget_sets("abcd")) for row in rows] == [4, 4, 4, 4]
    assert rows[1].published["h"] == 69.96 and not rows[3].published
    whole = table_rows("controls", "x", 4, 12, only=("Null space, no training",))
    assert [row.size for row in whole] == [1]


def test_rows_are_compared_with_any_other_of_their_size():
    rows = table_rows("main", "x", 4, 12, sizes=(1, 2), only=("CoOp", "ADU", "Baseline"))
    found = {row.label: row.base for row in compared_with(rows, "CoOp")}
    assert found["ADU, 1 of 4"] == found["Baseline, 1 of 4"] == "CoOp, 1 of 4"
    assert found["ADU, 2 of 4"] == "CoOp, 2 of 4" and found["CoOp, 2 of 4"] is None


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(UserError, match=r"table 'colours': unknown \(known: main, "):
        table_rows("colours", "pacs", 4, 12)


def test_a_whole_table_is_run_logged_and_kept(flags, tmp_path, capfd):
    output = tmp_path / "out"
    arguments = ["domain-accuracy", *flags, "--output", str(output)]
    code, out, err = commands.run("reproduce.py", arguments)
    assert code == 0, out + err
    assert len(list((output / "rows").iterdir())) == 3
    adu = [json.loads(file.read_text()) for file in (output / "rows" / "ADU").iterdir()]
    asked = {(domain, seed) for domain in DOMAINS for seed in (0, 1)}
    assert {(run["forget"], run["seed"]) for run in adu} == asked
    assert all(0 <= run["test"]["domain_accuracy"] <= 1 for run in adu)
    # H, Mem, For and the probe of two rows; zero-shot is the same for every seed.
    assert out.count("±") == 4 * 2

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (table,) = client.search_runs(["1"], "tags.level = 'study'")
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{table.info.run_id}'")
    assert len(runs) == len(DOMAINS) * 3
    h = [run["test"]["h"] for run in adu]
    assert table.data.metrics["ADU/h"] == pytest.approx(sum(h) / len(h))

    # With nothing left to do, the same table at once and without a cluster.
    assert main([*arguments, "--resume"]) == 0
    again = capfd.readouterr().out
    assert again[again.index("─") : again.rindex("ADU")] in out
    assert main([*arguments, "--resume", "--epochs", "2"]) == 2
    assert "holds another search: train.epochs is 1 there" in capfd.readouterr().err


@pytest.mark.faults
def test_a_table_in_a_bucket_is_sent_again_and_goes_on(flags, s3, tmp_path):
    output, server = f"{s3}/table", f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = ["domain-accuracy", *flags, "--output", output, "--tracking-uri", server]
    arguments += ["--resume-or-start"]
    code, out, err = commands.run("reproduce.py", [*arguments, "--forget", "photo"])
    assert code == 0, out + err
    rows = storage.names_in(f"{output}/rows")
    assert rows == ["ADU", "Baseline", "Zero_shot"]
    assert storage.exists(f"{output}/outcomes/ADU/photo-seed-1.npz")
    assert not storage.exists(f"{output}/.lock")
    # Another two forget sets; what is there stays.
    first = storage.read_bytes(f"{output}/rows/ADU/photo-seed-1.json")
    code, out, err = commands.run("reproduce.py", arguments)
    assert code == 0, out + err
    assert len(storage.names_in(f"{output}/rows/ADU")) == 2 * len(DOMAINS)
    assert storage.read_bytes(f"{output}/rows/ADU/photo-seed-1.json") == first


def measured(folder, data_set, sizes=None, **options):
    """The ablation of a data set of four domains, of which Baseline and ADU have been run."""
    domains = ("a", "b", "c", "d")
    manifest = SimpleNamespace(name=data_set, synthetic=False, domains=domains, url="")
    rows = tuple(table_rows("ablation", data_set, 4, 12, sizes))
    config = ReproduceConfig(table="ablation", seeds=(0, 1))
    plan = TablePlan(config, manifest, rows, str(folder), **options)
    by_name = {"Baseline": 0.5, "All": 0.71}
    for row, h in ((row, by_name.get(row.label.partition(", ")[0])) for row in rows):
        if h is None:
            continue
        for config in plan.configs(row):
            test = {"h": h + 0.01 * config.train.seed, "mem": 0.8, "for": 0.5}
            file = Path(plan.file(row, config))
            file.parent.mkdir(parents=True, exist_ok=True)
            run = {"forget": "+".join(config.forget), "seed": config.train.seed, "test": test}
            file.write_text(json.dumps(run))
    return plan


def test_rows_are_compared_run_by_run_with_the_baseline(tmp_path):
    plan = measured(tmp_path, "pacs")
    told = [" ".join(line) for line in printed(plan, 80)]
    assert any(line.startswith("Baseline 50.5") and line.endswith("50.0 ± 0.0") for line in told)
    # 71 less 50 with either seed, whatever these have in common.
    assert any(line.startswith("All 71.5") and line.endswith("+21.0 ± 0.0") for line in told)
    assert any("half of the 95 % interval" in line for line in told)
    # One run more than that: of eight the mean of 21 and, once, 29.
    (file,) = (Path(plan.file(plan.rows[-1], c)) for c in plan.configs(plan.rows[-1])[:1])
    run = json.loads(file.read_text())
    run["test"]["h"] += 0.08
    file.write_text(json.dumps(run))
    # Deviation 2.83, Student's quantile for seven degrees of freedom 2.365.
    (best,) = [line for line in printed(plan, 80) if line[0] == "All"]
    assert best[-3:] == ["+22.0", "±", "2.4"]


def test_forget_sets_of_all_sizes_are_compared_together(tmp_path):
    """Four of one and four of three with two seeds each; one run is not like the others."""
    plan = measured(tmp_path, "pacs", (1, 3))
    last = plan.rows[-1]
    assert last.label == "All, 3 of 4"
    (file,) = (Path(plan.file(last, config)) for config in plan.configs(last)[:1])
    run = json.loads(file.read_text())
    run["test"]["h"] += 0.16
    file.write_text(json.dumps(run))
    # Of sixteen the mean of 21 and, once, 37; deviation 4, Student's quantile 2.131.
    assert ["All,", "all", "sets", "+22.0", "±", "2.1"] in printed(plan, 80)
    assert not any(line[1:3] == ["all", "sets"] for line in printed(measured(tmp_path, "pacs"), 80))
    # Those of one size alone are not all.
    file.unlink()
    assert ["All,", "all", "sets", "-"] in printed(plan, 80)


def test_without_the_row_to_compare_with_there_is_no_such_column(tmp_path):
    plan = replace(measured(tmp_path, "pacs"), rows=measured(tmp_path, "pacs").rows[1:])
    assert "vs Baseline" not in " ".join(" ".join(line) for line in printed(plan, 80))
    assert len(_table(plan, 80).columns) == 4


@pytest.mark.parametrize("table", TABLES)
def test_every_table_fits_a_terminal(tmp_path, table):
    rows = tuple(table_rows(table, "pacs", 4, 12))
    manifest = SimpleNamespace(name="pacs", synthetic=False, domains=("a", "b", "c", "d"), url="")
    plan = TablePlan(ReproduceConfig(table=table, seeds=(0, 1)), manifest, rows, str(tmp_path))
    for row in rows:
        for config in plan.configs(row):
            h = 0.5 + 0.1 * config.train.seed
            test = {"h": h, "mem": h, "for": h, "domain_accuracy": h}
            file = Path(plan.file(row, config))
            file.parent.mkdir(parents=True, exist_ok=True)
            run = {"forget": "+".join(config.forget), "seed": config.train.seed, "test": test}
            file.write_text(json.dumps(run))
    printed(plan, 80)


def printed(plan, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(_table(plan, width))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width and "…" not in line for line in lines)
    return [line.split() for line in lines if line.strip()]


def test_published_figures_stand_beside_the_measured_ones_or_below(tmp_path):
    plan = measured(tmp_path, "office_home")
    (baseline,) = [line for line in printed(plan, 120) if line[0] == "Baseline"]
    # (50 and 51) less 52.59, 80 less 79.96, 50 less 39.88.
    assert " ".join(baseline[1:]) == (
        "50.5 ± 0.7 52.6 (-2.1) 80.0 ± 0.0 80.0 (+0.0) 50.0 ± 0.0 39.9 (+10.1)"
    )
    narrow = printed(plan, 80)
    at = [line[0] for line in narrow].index("Baseline")
    assert " ".join(narrow[at]) == "Baseline 50.5 ± 0.7 80.0 ± 0.0 50.0 ± 0.0"
    assert " ".join(narrow[at + 1]) == "paper (diff.) 52.6 (-2.1) 80.0 (+0.0) 39.9 (+10.1)"
    # What has not been run has the paper's figures alone.
    assert ["paper", "(diff.)", "60.8", "74.5", "51.7"] in narrow


@pytest.mark.parametrize("width", [80, 120])
def test_a_data_set_that_the_paper_lacks_has_no_published_columns(tmp_path, width):
    assert "paper" not in str(printed(measured(tmp_path, "pacs"), width))


def test_a_row_is_averaged_over_the_forget_sets_that_are_asked_for(tmp_path):
    plan = measured(tmp_path, "pacs", forget=(("b",),))
    assert [config.forget for config in plan.configs(plan.rows[-1])] == [("b",)] * 2


def test_more_shots_than_there_are_images_are_left_out(manifest_of_eight):
    rows = table_rows("shots", "tiny", 3, 4)
    kept, left_out = enough_images(rows, manifest_of_eight, DataConfig(val_shots=1))
    assert [row.shots for row in kept] == [1, 1, 2, 2]
    assert left_out[0].startswith("Baseline, 4 shots: ")
    with pytest.raises(UserError, match="ADU, 16 shots: "):
        enough_images(rows[-1:], manifest_of_eight, DataConfig(val_shots=1))


@pytest.fixture(scope="module")
def manifest_of_eight(tmp_path_factory):
    """Eight images of each class and domain, of which four are for training."""
    return load_manifest(str(tiny_manifest(tmp_path_factory.mktemp("eight"))))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tables"], "table 'tables': unknown (known: main, ablation, "),
        (["main", "--sizes", "[7]"], "forget sets of 7 domains: the main table has none (its "),
        (
            ["gaps", "--forget", "photo,sketch"],
            "forget sets of 2 domains: the gaps table has none (its sizes: 1)",
        ),
        (
            ["ablation", "--rows", "All,DDL", "--versus", "InstaPG"],
            "versus: there is no row called 'InstaPG' (there are 'DDL', 'All')",
        ),
        (
            ["ablation", "--rows", "All,Most"],
            "rows: the ablation table has none called 'Most' (it has 'Baseline', 'InstaPG', ",
        ),
        (["main", "--forget", "oil"], "forget domain 'oil': unknown (known domains: clipart, "),
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


def test_a_table_in_a_bucket_needs_a_server_of_mlflows(flags, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["main", *flags, "--output", "s3://bucket/table"]) == 2
    assert "tracking.uri: must be set where the output is a URL" in capsys.readouterr().err


def test_a_table_in_a_job_needs_an_output_that_stays(flags, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "working_dir_files" / "package"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert main(["main", *flags]) == 2
    assert "output unset: must be an absolute path or a URL in a Ray job" in capsys.readouterr().err
