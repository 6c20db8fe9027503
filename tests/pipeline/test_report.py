"""The report: what it says of a search that MLflow and Optuna know, and of one they do not."""

from __future__ import annotations

import optuna
import pytest
from mlflow import MlflowClient
from pipeline.tracking.tracker import Tracker

from adu.data.manifest import load_manifest
from pipeline.report import main
from pipeline.studies.storage import open_storage
from tests.pipeline import records
from tests.pipeline.results.test_pictures import DOMAINS, result
from tests.tiny import tiny_manifest

LR = optuna.distributions.FloatDistribution(0.001, 0.1, log=True)
N_CTX = optuna.distributions.CategoricalDistribution((2, 4, 8))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """The output folder of a search that MLflow and Optuna have heard of."""
    root = tmp_path_factory.mktemp("report")
    folder = root / "out"
    folder.mkdir()
    (folder / "search.json").write_text('{"id": "out-1a2b3c4d"}')
    study = optuna.create_study(
        storage=open_storage(None, folder / "optuna.journal"),
        study_name="sketch",
        direction="maximize",
    )
    for number in range(6):
        trial = study.ask({"train.lr": LR, "method.n_ctx": N_CTX})
        for epoch in (1, 2, 3):
            h = 0.1 * epoch + 0.05 * number
            trial.report(h, epoch)
            trial.set_user_attr(f"val, epoch {epoch}", {"mem": 0.9 - h / 3, "for": h, "h": h})
        pruned = number == 4
        state = optuna.trial.TrialState.PRUNED if pruned else None
        study.tell(trial, None if pruned else 0.3 + 0.05 * number, state=state)
    log_runs(root, folder)
    return folder


def log_runs(root, folder):
    manifest = load_manifest(str(tiny_manifest(root / "data", per_cell=4)))
    tracker = Tracker(None, folder, "tiny")
    tags = {
        "forget": "sketch",
        "search": "out-1a2b3c4d",
        "backbone": "demo",
        "method": "adu",
        "manifest_digest": manifest.digest,
        "synthetic": "true",
    }
    shared = {"epochs": 3, "shots": 2, "trials": 6, "sampler": "tpe", "searched": "lr, n_ctx"}
    parent = tracker.start_study("s/sketch", "forget sketch", tags, shared)
    trial = tracker.log_trial(parent, "0", {"train.lr": 0.01, "method.n_ctx": 4}, tags)
    tracker.end_trial(trial, "FINISHED", {"wall_s": 7.0})
    outcome = result(8, 0.9, 0.8)
    for stage, final in records.study(best=(0.95, 0.9)).finals.items():
        for seed in (0, 1):
            train = final.run.train.model_copy(update={"seed": seed})
            run = final.run.model_copy(update={"train": train})
            tracker.log_final(parent, stage, run, outcome, manifest, tags)
    tracker.log_pictures(parent, {"features.png": b"\x89PNG features"})
    tracker.end_study(parent, "FINISHED", {})


def test_the_page_holds_results_charts_and_pictures_by_itself(searched, capsys):
    assert main(["--output", str(searched)]) == 0
    page = (searched / "report.html").read_text()
    for text in (
        "forget sketch",
        "ADU, paper defaults",
        "5 complete, 1 stopped early, 0 failed",
        "+0.0 ± 0.0 points of H",
        "sketch (forget)",
        "The images are synthetic",
        "Pareto front",
        "Parallel coordinates",
        "Learning curves",
        "fANOVA",
        "Features of test images",
    ):
        assert text in page, text
    assert page.count('<img src="data:image/png;base64,') == 5
    assert "http" not in page.replace("http-equiv", "")
    assert DOMAINS[0] in page
    client = MlflowClient(f"sqlite:///{searched.parent / 'mlflow.db'}")
    (study,) = client.search_runs(["1"], "tags.stage = 'study'")
    logged = [file.path for file in client.list_artifacts(study.info.run_id)]
    assert "report.html" in logged


@pytest.mark.parametrize("change", ["folder", "database", "nothing"])
def test_a_search_that_nobody_knows_is_refused(searched, tmp_path, capsys, change):
    arguments = ["--output", str(tmp_path / "out")]
    if change != "nothing":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "search.json").write_text('{"id": "out-ffffffff"}')
    if change == "folder":
        arguments += ["--tracking-uri", f"sqlite:///{searched.parent / 'mlflow.db'}"]
    assert main(arguments) == 2
    says = {
        "folder": "has no search from there",
        "database": "there is no such file",
        "nothing": "has no search.json, so no search",
    }[change]
    line = capsys.readouterr().err
    assert says in line and line.count("\n") == 1
