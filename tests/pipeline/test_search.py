"""The main job, run as a user runs it: a real cluster, real trials, a real MLflow database."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import psutil
import pytest
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from PIL import Image

from adu import storage
from adu.data.manifest import load_manifest
from pipeline import evaluate, report
from pipeline.command import load_config
from pipeline.results.output import fetch_journal
from pipeline.studies.records import read_study_record
from pipeline.train import TrainCommandConfig
from tests.pipeline import commands
from tests.pipeline.searches import N_TRIALS, config, refused, write_config

STAGES = {"zero_shot", "baseline", "paper_defaults", "best"}
# Of one seed each.
SINGLE = {"zero_shot", "best_again"}


@pytest.fixture(scope="module")
def finished(data) -> Path:
    """The output folder of a search that has ended; its stdout and read log lie beside it."""
    file = write_config(data / "search.yaml", config(data))
    code, out, err = commands.run(
        "search.py", ["--config", file], ADU_READ_LOG=str(data / "reads.txt")
    )
    assert code == 0, out + err
    (data / "stdout.txt").write_text(out)
    assert err == ""
    return data / "results" / "out"


@pytest.fixture(scope="module")
def summary(finished) -> dict:
    return json.loads((finished / "summary.json").read_text())


def optuna_trials(output: Path) -> list[optuna.trial.FrozenTrial]:
    storage = JournalStorage(JournalFileBackend(str(output / "optuna.journal")))
    return optuna.load_study(study_name="sketch", storage=storage).get_trials()


def test_the_summary_holds_every_stage_of_every_study(summary):
    (study,) = summary["studies"]
    assert study["forget"] == ["sketch"]
    assert (study["n_trials"], study["selected_on"]) == (N_TRIALS, "val")
    assert study["best"]["params"].keys() == config(Path())["space"].keys()
    assert study["baselines"].keys() == STAGES - {"best"}
    scores = [study["best"]["val"], study["best"]["test"]]
    scores += [stage["test"] for stage in study["baselines"].values()]
    for score in scores:
        assert score.keys() == {"mem", "for", "h"}
        assert all(0 <= value <= 1 for value in score.values())
    assert study["best"]["seeds"] == [0, 1]


def test_the_summary_says_where_the_time_went(summary):
    timing = summary["timing"]
    assert 0 < timing["executor_start_s"] < timing["wall_s"]
    assert timing["train_s"] > 0
    assert timing["trial_overhead_median_s"] > 0


def test_the_best_trial_is_the_best_on_validation_images(finished, summary):
    complete = [t for t in optuna_trials(finished) if t.state == TrialState.COMPLETE]
    assert complete
    best = summary["studies"][0]["best"]
    # Of two, one of them the defaults or both better at a first look, the better with two seeds.
    first, second = best["val_h_by_seed"]
    assert first in sorted(trial.value for trial in complete)[-2:] or best["trial"] == 0
    assert best["val"]["h"] == pytest.approx((first + second) / 2)
    compared = summary["studies"][0]["compared"]
    assert 0 in [row["trial"] for row in compared]
    assert best["val"]["h"] == max(row["val"]["h"] for row in compared)


def test_the_searchs_best_seed_is_the_same_model_when_it_is_trained_again(finished, summary):
    study = read_study_record(str(finished / "studies" / "sketch.json"))
    tries = summary["studies"][0]["best"]["val_h_of_tries"]
    assert tries == {str(seed): scores.h for seed, scores in study.best.tries.items()}
    assert tries
    again = study.finals["best_again"]
    looks = [*study.best.looks, *study.best.tries.values()]
    best = max(looks, key=lambda look: look.h)
    assert (again.val.h, again.val.mem) == (best.h, best.mem)


def test_the_first_trial_is_the_papers_defaults(finished):
    first = optuna_trials(finished)[0]
    space = config(Path())["space"]
    assert first.params == {path: values["default"] for path, values in space.items()}


def test_stopped_trials_are_pruned_and_keep_their_curve(finished):
    for trial in optuna_trials(finished):
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        n_epochs = len(trial.intermediate_values)
        assert (n_epochs == 4) == (trial.state == TrialState.COMPLETE)


def test_test_images_are_read_only_after_selection(finished, data):
    table = load_manifest(str(data / "manifest")).table.to_pylist()
    test_uris = {row["uri"] for row in table if row["split"] == "test"}
    reads = [line.split(" ", 1) for line in (data / "reads.txt").read_text().splitlines()]
    first_test_read = min(float(when) for when, uri in reads if uri in test_uris)
    assert {uri for _, uri in reads} > test_uris, "not all test images were read"
    selected = max(trial.datetime_complete.timestamp() for trial in optuna_trials(finished))
    assert first_test_read > selected


def test_every_image_is_read_once_for_all_executors_and_runs(finished, data):
    lines = (data / "reads.txt").read_text().splitlines()
    reads = [uri for _, uri in (line.split(" ", 1) for line in lines)]
    assert len(reads) == len(set(reads))


def test_mlflow_has_a_run_for_everything(finished):
    client = MlflowClient(f"sqlite:///{finished.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    by_stage: dict[str, list] = {}
    for run in runs:
        by_stage.setdefault(run.data.tags["stage"], []).append(run)
    counts = {
        (stage, level): sum(run.data.tags["level"] == level for run in runs)
        for stage, runs in by_stage.items()
        for level in {run.data.tags["level"] for run in runs}
    }
    # Two trials were raced with a further seed, and the better one was tried with another.
    assert counts == {
        ("study", "study"): 1,
        ("trial", "configuration"): N_TRIALS,
        ("trial", "seed"): 3,
        **{(stage, "configuration"): 1 for stage in (*STAGES, "best_again")},
        **{(stage, "seed"): 2 for stage in STAGES - SINGLE},
        **{(stage, "seed"): 1 for stage in SINGLE},
    }
    (parent,) = by_stage["study"]
    for run in runs:
        if run.data.tags["level"] == "configuration":
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["forget"] == "sketch"
        assert run.info.status in ("FINISHED", "KILLED")
    trials = [run for run in by_stage["trial"] if run.data.tags["level"] == "configuration"]
    check_trial_run(client, trials[0])
    check_final_run(client, next(r for r in by_stage["best"] if r.data.tags["level"] == "seed"))
    pictures = {
        Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "pictures")
    }
    names = {"mem_against_for", "history", "accuracy_by_domain", "features", "report", "attention"}
    assert pictures == {f"{name}.png" for name in names}


def check_trial_run(client, run):
    assert run.data.params.keys() == {"gamma", "lambda", "n_ctx", "instapg_layer", "lr"}
    curves = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    n_epochs = int(run.data.metrics["epochs_done"])
    for name in ("val/mem", "val/for", "val/h", "loss/total", "loss/memorize", "loss/forget"):
        assert [point.step for point in curves[name]] == list(range(1, n_epochs + 1)), name


def check_final_run(client, run):
    assert {"test/mem", "test/for", "test/h", "test/accuracy/sketch"} <= run.data.metrics.keys()
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "checkpoint.safetensors"}
    (used,) = run.inputs.dataset_inputs
    assert run.data.tags["manifest_digest"].startswith(used.dataset.digest)


def test_optunas_dashboard_opens_its_storage(finished):
    storage = JournalStorage(JournalFileBackend(str(finished / "optuna.journal")))
    app = optuna_dashboard.wsgi(storage)
    (study,) = ask(app, "/api/studies")["study_summaries"]
    assert study["study_name"] == "sketch"
    shown = ask(app, f"/api/studies/{study['study_id']}")
    states = {trial["number"]: trial["state"] for trial in shown["trials"]}
    assert states == {t.number: t.state.name.capitalize() for t in optuna_trials(finished)}


def ask(app, path: str) -> dict:
    """What a WSGI application answers."""
    environment = {"PATH_INFO": path}
    setup_testing_defaults(environment)
    return json.loads(b"".join(app(environment, lambda *_: None)))


def test_pictures_are_pictures(finished):
    files = sorted((finished / "studies" / "sketch").glob("*.png"))
    assert len(files) == 6
    for file in files:
        with Image.open(file) as image:
            assert image.width > 500
            assert len(image.convert("L").getcolors(1 << 16)) > 20, f"{file.name} is blank"


def test_the_end_of_the_search_is_a_table_and_where_to_look(finished, data):
    out = (data / "stdout.txt").read_text()
    for label in ("zero-shot", "Baseline", "ADU, paper defaults", "ADU, searched"):
        assert label in out
    assert str(finished) in out
    assert "mlflow ui --backend-store-uri sqlite:///" in out
    assert "MLflow is behind" not in out
    assert "Traceback" not in out
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= 100


def test_the_output_has_what_people_ask_authors_for(finished, summary, data):
    """The images that were trained on, every seed's figures, and configurations to train again."""
    table = load_manifest(str(data / "manifest")).table.to_pylist()
    hashes = {row["image_id"]: row["sha256"] for row in table}
    with (finished / "images.csv").open() as stream:
        images = list(csv.DictReader(stream))
    uses = Counter(row["use"] for row in images)
    assert uses == {"train": 2 * 9, "val": 9}
    assert all(hashes[row["image_id"]] == row["sha256"] for row in images)
    with (finished / "figures.csv").open() as stream:
        figures = list(csv.DictReader(stream))
    best = [float(row["h"]) for row in figures if row["stage"] == "best"]
    assert sum(best) / len(best) == pytest.approx(summary["studies"][0]["best"]["test"]["h"])
    log = (finished / "search.log").read_text()
    assert "sketch/0: begins" in log and "sketch/best-0: complete" in log
    chosen = str(finished / "studies" / "sketch" / "configs" / "best.yaml")
    config = load_config(TrainCommandConfig, {}, ["--config", chosen])
    assert (config.forget, config.seeds) == (("sketch",), (0, 1))
    params = summary["studies"][0]["best"]["params"]
    assert config.method.gamma == params["method.gamma"]
    assert config.context.data.shots == 2


def test_evaluation_of_the_checkpoint_gives_the_same_figures(finished, data, tmp_path, capsys):
    client = MlflowClient(f"sqlite:///{finished.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    (run, *_) = client.search_runs(
        [experiment.experiment_id], "tags.stage = 'best' AND params.seed = '0'"
    )
    checkpoint = client.download_artifacts(run.info.run_id, "checkpoint.safetensors")
    arguments = [
        *("--checkpoint", checkpoint, "--manifest", str(data / "manifest")),
        *("--output", str(tmp_path / "figures.json")),
        *("--probe-shots", "2", "--tracking-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
    ]
    assert evaluate.main(arguments) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in ("mem", "for", "h"):
        assert figures["adu"][0][name] == run.data.metrics[f"test/{name}"]
    assert "sketch (forget)" in capsys.readouterr().out


def test_another_search_in_the_same_folder_is_refused(finished, data, capsys):
    before = (finished / "summary.json").read_bytes()
    line = refused(capsys, "--config", str(data / "search.yaml"))
    assert "holds a search already (--resume goes on with it" in line
    changed = config(data) | {"train": {"epochs": 5, "batch_size": 8}}
    file = write_config(data / "changed.yaml", changed)
    line = refused(capsys, "--config", file, "--resume")
    assert "train.epochs is 4 there and 5 now" in line
    assert (finished / "summary.json").read_bytes() == before


def test_a_finished_search_resumed_trains_nothing(finished, data, summary):
    trials = optuna_trials(finished)
    code, out, err = commands.run("search.py", ["--config", str(data / "search.yaml"), "--resume"])
    assert code == 0, out + err
    assert json.loads((finished / "summary.json").read_text()) == summary
    assert "ADU, searched" in out
    assert [t.number for t in optuna_trials(finished)] == [t.number for t in trials]


@pytest.mark.faults
def test_ctrl_c_keeps_what_is_finished_and_resume_does_the_rest(data, tmp_path):
    # Long trials, none stopped early, so that the signal comes within one.
    values = config(data, epochs=60, trials=3) | {"output": str(tmp_path / "results" / "out")}
    values["search"]["grace_epochs"] = 60
    # A share of zero-shot's, which is run for it before the first trial.
    values["search"]["min_mem"] = "0%"
    values |= {"final": {"seeds": [0]}, "resources": {"executors": 1}}
    file = write_config(tmp_path / "search.yaml", values)
    log = tmp_path / "reads.txt"
    process = commands.start("search.py", ["--config", file], ADU_READ_LOG=str(log))
    output = tmp_path / "results" / "out"
    wait_for(lambda: "COMPLETE" in states(output), process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert err == ""
    assert "Interrupted" in out
    assert "not finished: " in out
    summary = json.loads((output / "summary.json").read_text())
    n_before = summary["studies"][0]["n_trials"]
    assert summary["interrupted"]
    assert 1 <= n_before < 3
    assert "RUNNING" not in states(output)
    assert_test_split_untouched(log, data)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, f"left behind: {alive}"

    code, out, err = commands.run("search.py", ["--config", file, "--resume"])
    assert code == 0, out + err
    summary = json.loads((output / "summary.json").read_text())
    assert summary["studies"][0]["n_trials"] == 3
    assert not summary["interrupted"]
    assert re.search(r"sketch\W+zero-shot", out)


def states(output: Path) -> list[str]:
    try:
        return [trial.state.name for trial in optuna_trials(output)]
    except (OSError, KeyError):
        return []


@pytest.mark.faults
def test_a_search_in_a_bucket_goes_on_on_a_new_machine(data, tmp_path, s3):
    """Of the machine that it was started on nothing is left, as after the loss of a pod.

    Every trial of its second study fails, which leaves the first one alone.
    """
    output, uri = f"{s3}/searches/one", f"sqlite:///{tmp_path / 'mlflow.db'}"
    values = config(data, epochs=12, trials=3) | {"output": output, "tracking": {"uri": uri}}
    values["search"]["scheduler"] = "none"
    values["forget"] = [["sketch"], ["photo"]]
    too_fast = {"low": 1e10, "high": 1e12, "log": True, "default": 1e10}
    values["overrides"] = {"photo": {"train.lr": too_fast}}
    values |= {"final": {"seeds": [0]}, "resources": {"executors": 1}}
    arguments = ["--config", write_config(tmp_path / "search.yaml", values), "--resume-or-start"]
    # Not below tmp_path: names of Ray's sockets must be short.
    disk = Path(tempfile.mkdtemp(prefix="disk-"))
    process = commands.start("search.py", arguments, TMPDIR=str(disk))
    savepoints = f"{output}/unfinished/sketch"
    # Its first trial has ended, its second has begun.
    wait_for(lambda: storage.names_in(savepoints) == ["1.state"], process, 240)
    family = psutil.Process(process.pid).children(recursive=True)
    for member in [*family, process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.communicate()
    shutil.rmtree(disk)
    before = trials_in_bucket(output, tmp_path)
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]

    code, out, err = commands.run("search.py", arguments)
    assert code == 1, out + err
    failure = (
        r"photo: all 3 trials failed: 3 x TrainingDivergedError: loss term '\w+' is not finite"
    )
    assert re.search(rf"^failed +{failure} in epoch \d$", out, re.MULTILINE), out
    after = trials_in_bucket(output, tmp_path)
    assert [(trial.number, trial.state.name) for trial in after] == [
        (number, "COMPLETE") for number in range(3)
    ]
    assert after[0].user_attrs == before[0].user_attrs, "a finished trial was run again"
    assert after[1].params == before[1].params
    summary = json.loads(storage.read_bytes(f"{output}/summary.json"))
    assert [study["complete"] for study in summary["studies"]] == [True, False]
    assert [study["n_failed"] for study in summary["studies"]] == [0, 3]
    assert set(storage.names_in(output)) >= {"search.json", "ray.log", "studies"}
    assert ".lock" not in storage.names_in(output)
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    for forget, status, finals in (("sketch", "FINISHED", STAGES), ("photo", "FAILED", ())):
        of_study = [run for run in runs if run.data.tags["forget"] == forget]
        stages = sorted(
            run.data.tags["stage"] for run in of_study if run.data.tags["level"] != "seed"
        )
        assert stages == sorted([*finals, "study", *["trial"] * 3])
        assert {run.info.status for run in of_study} == {status}
    assert report.main(["--output", output]) == 0
    assert storage.read_bytes(f"{output}/report.html").startswith(b"<!doctype html>")


def trials_in_bucket(output: str, folder: Path) -> list[optuna.trial.FrozenTrial]:
    fetch_journal(output, folder)
    return optuna_trials(folder)


def wait_for(happened, process, timeout_s: float = 150) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def assert_test_split_untouched(log: Path, data: Path) -> None:
    table = load_manifest(str(data / "manifest")).table.to_pylist()
    test_uris = {row["uri"] for row in table if row["split"] == "test"}
    reads = {line.split(" ", 1)[1] for line in log.read_text().splitlines()}
    assert reads and not reads & test_uris


@pytest.mark.faults
@pytest.mark.skipif(
    not (commands.PACS.is_dir() and commands.PACS_CLIP.is_dir()),
    reason="needs ../shared/data/pacs and ../shared/models/pacs-clip",
)
def test_a_search_on_photographs_and_drawings(tmp_path):
    for cell in sorted(commands.PACS.glob("*/*")):
        place = tmp_path / "pacs" / cell.parent.name / cell.name
        place.mkdir(parents=True)
        for file in sorted(cell.iterdir())[:6]:
            (place / file.name).symlink_to(file)
    manifest, output = str(tmp_path / "manifest"), tmp_path / "results" / "out"
    code, out, err = commands.run(
        "ingest.py", ["--source", str(tmp_path / "pacs"), "--out", manifest, "--name", "pacs"]
    )
    assert code == 0, out + err
    space = {"train.lr": {"low": 0.001, "high": 0.1, "log": True, "default": 0.02}}
    values = {
        "context": {"data": {"shots": 2, "val_shots": 1}},
        "train": {"epochs": 1},
        "space": space,
        "search": {"trials": 1, "tries": 0},
        "forget": [["sketch"]],
        "final": {"seeds": [0]},
        "resources": {"executors": 1},
    }
    file = write_config(tmp_path / "pacs.yaml", values)
    code, out, err = commands.run(
        "search.py",
        [
            *("--config", file, "--manifest", manifest),
            *("--backbone", str(commands.PACS_CLIP), "--output", str(output)),
        ],
    )
    assert code == 0, out + err
    (study,) = json.loads((output / "summary.json").read_text())["studies"]
    # The stand-in for a pre-trained CLIP knows photographs and drawings alike.
    before = study["baselines"]["zero_shot"]["accuracy_by_domain"]
    assert min(before.values()) > 0.7
    assert study["n_trials"] == 1
    assert (output / "studies" / "sketch" / "report.png").stat().st_size > 10_000
