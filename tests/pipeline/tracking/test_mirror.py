"""MLflow holds what the output says: once or again, also if answers are lost on the way."""

from __future__ import annotations

import uuid
from dataclasses import replace

import optuna
import pytest
from mlflow import MlflowClient
from optuna.storages import InMemoryStorage

from pipeline.studies.attributes import SCORES
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.projection import Projection
from pipeline.tracking.server import quiet_mlflow
from pipeline.tracking.truth import AtWork, Truth
from tests.mlflow_server import held
from tests.pipeline.tracking import made_up


@pytest.fixture(scope="module")
def client(server):
    with quiet_mlflow():
        return MlflowClient(server.uri)


def new_search(folder, **changes):
    return made_up.search_output(folder, id=str(uuid.uuid4()), **changes)


def contents(client, truth):
    """What MLflow holds, apart from what names the search itself."""
    found = held(client, truth.facts.data_set, truth.facts.id)
    own = ("search_id", "output", "adu.fingerprint")
    return {
        name: (status, parent, {k: v for k, v in tags.items() if k not in own}, *rest)
        for name, (status, parent, tags, *rest) in found.items()
    }


@pytest.fixture(scope="module")
def calm(server, client, tmp_path_factory):
    """A search that was written without trouble, and what MLflow has of it."""
    truth = new_search(tmp_path_factory.mktemp("calm"))
    Mirror(server, truth).sync()
    return truth, contents(client, truth)


def test_there_is_a_run_a_study_a_configuration_and_a_seed(calm):
    _, found = calm
    assert {name: (status, parent) for name, (status, parent, *_) in found.items()} == {
        "forget sketch": ("FINISHED", None),
        "sketch: trial 0": ("FINISHED", "forget sketch"),
        "sketch: trial 0, seed 1000": ("FINISHED", "sketch: trial 0"),
        "sketch: trial 1": ("KILLED", "forget sketch"),
        "sketch: trial 2": ("FAILED", "forget sketch"),
        "sketch: ADU, searched": ("FINISHED", "forget sketch"),
        "sketch: ADU, searched, seed 1": ("FINISHED", "sketch: ADU, searched"),
        "sketch: ADU, searched, seed 2": ("FINISHED", "sketch: ADU, searched"),
        "sketch: ADU, paper defaults": ("FINISHED", "forget sketch"),
        "sketch: ADU, paper defaults, seed 1": ("FINISHED", "sketch: ADU, paper defaults"),
        "sketch: ADU, paper defaults, seed 2": ("FINISHED", "sketch: ADU, paper defaults"),
        "sketch: zero-shot": ("FINISHED", "forget sketch"),
        "sketch: zero-shot, seed 0": ("FINISHED", "sketch: zero-shot"),
    }


def test_runs_hold_curves_parameters_figures_and_files(calm):
    _, found = calm
    _, _, tags, params, curves, _, _ = found["sketch: trial 0"]
    assert params == {"gamma": "0.5", "n_ctx": "2"}
    assert curves["loss/total"] == [(1, 1.0), (2, 0.5)]
    assert [step for step, _ in curves["val/h"]] == [1, 2]
    assert [step for step, _ in curves["val/accuracy/photo"]] == [1, 2]
    assert curves["seeds/n"] == [(2, 2.0)]
    assert (tags["stage"], tags["level"], tags["forget"]) == ("trial", "configuration", "sketch")
    _, _, tags, params, curves, files, data = found["sketch: ADU, searched, seed 1"]
    assert (params["gamma"], params["seed"], tags["level"]) == ("3.0", "1", "seed")
    assert files == ["checkpoint.safetensors", "config.yaml"] and data == ["test"]
    assert [step for step, _ in curves["val/h"]] == [1, 2], "a final run has a curve, too"
    assert curves["test/for"] == [(0, 0.8)]
    _, _, _, params, curves, _, _ = found["sketch: ADU, searched"]
    assert "seed" not in params and curves["test/for"] == [(2, pytest.approx(0.805))]
    _, _, tags, _, curves, files, data = found["forget sketch"]
    assert (files, data) == (["pictures"], ["train"])
    assert curves["best/test_for"] == [(3, pytest.approx(0.805))]
    assert "forgets sketch of made-up" in tags["mlflow.note.content"]
    assert found["sketch: trial 2"][2]["error"] == "ValueError: boom"


def test_a_proof_is_a_page_a_verdict_and_a_distance(server, client, calm, tmp_path):
    proof = {"verdict": "Suppressed, not forgotten.", "distance": 0.43}
    truth = new_search(tmp_path / "out", proof=proof)
    Mirror(server, truth).sync()
    _, _, tags, _, curves, files, _ = contents(client, truth)["forget sketch"]
    assert tags["verdict"] == proof["verdict"]
    assert [value for _, value in curves["best/distance"]] == [0.43]
    assert {"evidence.html", "evidence.json"} <= set(files)
    _, _, tags, _, curves, files, _ = calm[1]["forget sketch"]
    assert "verdict" not in tags and "best/distance" not in curves
    assert not {"evidence.html", "evidence.json"} & set(files)


def test_what_is_there_is_not_written_again(server, calm, monkeypatch):
    truth, _ = calm

    def refuse(*_, **__):
        raise AssertionError("nothing is missing")

    for name in ("create_run", "log_batch", "set_tag", "log_artifacts", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, refuse)
    Mirror(server, truth).sync()


class LostAnswersError(Exception):
    """Stands for a connection that breaks."""


def test_lost_answers_cost_nothing(server, client, calm, tmp_path, monkeypatch):
    """Each third write is made, and its answer is lost."""
    calls = 0

    def losing(method):
        def call(*arguments, **options):
            nonlocal calls
            answer = method(*arguments, **options)
            calls += 1
            if calls % 3 == 0:
                raise LostAnswersError(method.__name__)
            return answer

        return call

    truth = new_search(tmp_path)
    mirror = Mirror(server, truth)
    with monkeypatch.context() as patch:
        names = ("create_run", "log_batch", "set_tag", "log_inputs", "set_terminated")
        for name in names:
            patch.setattr(MlflowClient, name, losing(getattr(MlflowClient, name)))
        for _ in range(200):
            try:
                mirror.sync()
                break
            except LostAnswersError:
                assert mirror.n_behind > 0
    assert mirror.n_behind == 0
    assert contents(client, truth) == calm[1]


def test_searches_of_one_name_do_not_touch_each_other(server, client, calm, tmp_path):
    truth, before = calm
    other = new_search(tmp_path, best_h=0.5)
    Mirror(server, other).sync()
    assert contents(client, truth) == before
    assert contents(client, other).keys() == before.keys()


def test_a_search_at_work_is_followed_and_one_that_stopped_is_closed(server, client, tmp_path):
    facts = made_up.facts_of(tmp_path, [("sketch",)], id=str(uuid.uuid4()))
    stored = InMemoryStorage()
    study = optuna.create_study(storage=stored, study_name="sketch", direction="maximize")
    trial = study.ask({"method.gamma": made_up.GAMMA})
    truth = Truth(facts, str(tmp_path), stored, AtWork())
    mirror = Mirror(server, truth)
    mirror.sync()
    assert statuses(client, truth) == {"forget sketch": "RUNNING", "sketch: trial 0": "RUNNING"}
    trial.set_user_attr(f"{SCORES}1", {"mem": 0.5, "for": 0.5, "h": 0.5, "loss/total": 1.0})
    mirror.sync()
    trial.set_user_attr(f"{SCORES}2", {"mem": 0.6, "for": 0.6, "h": 0.6, "loss/total": 0.5})
    mirror.sync()
    curves = contents(client, truth)["sketch: trial 0"][4]
    assert curves["val/h"] == [(1, 0.5), (2, 0.6)]
    # One that has not come to an epoch waits for a resumption, which MLflow has no run for.
    study.ask({"method.gamma": made_up.GAMMA})
    mirror.sync()
    assert statuses(client, truth)["sketch: trial 1"] == "RUNNING"
    waiting = optuna.trial.TrialState.WAITING
    stored.set_trial_state_values(stored.get_trial_id_from_study_id_trial_number(0, 1), waiting)
    assert Projection(mirror).behind == ""
    truth.end()
    mirror.sync()
    assert set(statuses(client, truth).values()) == {"KILLED"}


def test_a_trial_that_goes_on_after_a_kill_has_each_epoch_once(server, client, tmp_path):
    """Optuna has it begin anew, so that its epochs seem to end at other times."""
    facts = made_up.facts_of(tmp_path, [("sketch",)], id=str(uuid.uuid4()))
    stored = InMemoryStorage()
    study = optuna.create_study(storage=stored, study_name="sketch", direction="maximize")
    trial = study.ask({"method.gamma": made_up.GAMMA})
    looks = {"mem": 0.5, "for": 0.5, "h": 0.5, "loss/total": 1.0}
    trial.set_user_attr(f"{SCORES}1", looks)
    Mirror(server, Truth(facts, str(tmp_path), stored, AtWork())).sync()
    waiting = optuna.trial.TrialState.WAITING
    stored.set_trial_state_values(stored.get_trial_id_from_study_id_trial_number(0, 0), waiting)
    again = study.ask({"method.gamma": made_up.GAMMA})
    assert again.number == 0 and again.datetime_start > trial.datetime_start
    again.set_user_attr(f"{SCORES}2", looks)
    truth = Truth(facts, str(tmp_path), stored, AtWork())
    Mirror(server, truth).sync()
    assert contents(client, truth)["sketch: trial 0"][4]["val/h"] == [(1, 0.5), (2, 0.5)]


def statuses(client, truth):
    return {name: values[0] for name, values in contents(client, truth).items()}


ODD = ("it's", 'a "b" (50%), c+d', "../Café/漢字", "漢字", "字漢", "x" * 300, "[photo]")


def test_names_may_be_anything(server, client, tmp_path):
    forgets = [(name,) for name in ODD[:2]]
    truth = new_search(tmp_path, forgets=forgets, trials=2, domains=ODD, name="it's 漢字")
    truth.facts = truth.facts.model_copy(update={"data_set": "a/'b' 漢字"})
    Mirror(server, truth).sync()
    (experiment,) = [
        each for each in client.search_experiments() if each.tags.get("data_set") == "a/'b' 漢字"
    ]
    runs = client.search_runs([experiment.experiment_id], "tags.stage = 'study'")
    assert {run.data.tags["forget"] for run in runs} == {
        study.name for study in truth.facts.studies
    }
    finals = client.search_runs([experiment.experiment_id], "tags.stage = 'best'")
    accuracies = [name for name in finals[0].data.metrics if name.startswith("test/accuracy/")]
    assert len(accuracies) == len(ODD), "two domains have one metric"
    parent = runs[0].data.tags
    shown = {name.removeprefix("test/accuracy/") for name in accuracies}
    assert {parent[f"domain.{short}"] for short in shown} == set(ODD)


def test_a_run_that_changes_is_written_anew(server, client, tmp_path):
    truth = new_search(tmp_path)
    mirror = Mirror(server, truth)
    mirror.sync()
    study = truth.facts.studies[0]
    record = tmp_path / study.record
    record.rename(tmp_path / "hidden.json")
    mirror.sync()
    assert statuses(client, truth)["forget sketch"] == "KILLED"
    (tmp_path / "hidden.json").rename(record)
    truth.facts = replace_tags(truth.facts, trials="9")
    mirror.sync()
    status, _, tags, *_ = contents(client, truth)["forget sketch"]
    assert (status, tags["trials"]) == ("FINISHED", "9")


def replace_tags(facts, **tags):
    return facts.model_copy(update={"tags": {**facts.tags, **tags}})


def test_fingerprints_tell_what_differs_and_not_when(calm):
    truth, _ = calm
    run = next(run for run in truth.runs() if run.metrics and run.files)
    later = replace(run, began_ms=5, metrics=tuple((n, v, t + 1, s) for n, v, t, s in run.metrics))
    assert later.fingerprint == run.fingerprint
    name, value, at_ms, step = run.metrics[0]
    changed = replace(run, metrics=((name, value + 1e-12, at_ms, step), *run.metrics[1:]))
    assert changed.fingerprint != run.fingerprint
