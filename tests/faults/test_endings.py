"""How a search ends, and what it goes on from: as a user starts it."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from pipeline.studies.storage import read_journal
from tests.faults.stub_job import EPOCHS, PATIENCE_S, StubJob, trial_states
from tests.pipeline import commands
from tests.tiny import tiny_backbone, tiny_manifest

# Of a trial that is to be caught at work.
MANY_EPOCHS = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with a model and a manifest."""
    folder = tmp_path_factory.mktemp("endings")
    tiny_backbone(folder / "model")
    tiny_manifest(folder)
    return folder


def search_file(data: Path, folder: Path, **changes) -> str:
    values = {
        "name": "tiny",
        "context": {
            "backbone": {"name": str(data / "model")},
            "data": {"manifest": str(data / "manifest"), "shots": 2, "val_shots": 1},
        },
        "forget": [["sketch"]],
        "train": {"epochs": 1, "batch_size": 8},
        "space": {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}},
        "search": {"trials": 2, "scheduler": "none", "tries": 0},
        "final": {"seeds": [0]},
        "resources": {"executors": 1},
        "output": str(folder / "results" / "out"),
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(values | changes))
    return str(file)


def run(*arguments: str) -> tuple[int, str]:
    process = commands.start("search.py", arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert err == ""
    return process.returncode, out


def trials(output: Path, study: str = "sketch") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(
        study_name=study, storage=read_journal(output / "optuna.journal")
    ).get_trials()


def studies(output: Path) -> dict[str, dict]:
    found = json.loads((output / "summary.json").read_text())["studies"]
    return {"+".join(study["forget"]): study for study in found}


def test_a_final_run_that_diverges_costs_its_own_row_alone(data, tmp_path):
    """The paper's defaults diverge; so does their trial."""
    space = {"method.gamma": {"choices": [1e39, 1.0], "default": 1e39}}
    search = {"trials": 2, "sampler": "grid", "scheduler": "none"}
    file = search_file(data, tmp_path, space=space, search=search)
    output = tmp_path / "results" / "out"
    reason = "loss term 'total' is not finite in epoch 1"
    for arguments in ([], ["--resume"]):
        code, out = run("--config", file, *arguments)
        assert code == 1, out
        (told,) = [line for line in out.splitlines() if line.startswith("failed ")]
        assert told.startswith("failed    sketch: final run ADU, paper defaults, seed 0: ")
        assert told.endswith(reason)
        assert any("ADU, paper defaults" in x and "failed" in x for x in out.splitlines())
        study = studies(output)["sketch"]
        assert study["complete"] and study["n_failed"] == 1
        rows = {"best": study["best"], **study["baselines"]}
        assert [stage for stage, row in rows.items() if row["test"] is None] == ["paper_defaults"]


def test_sigterm_in_an_epoch_prunes_nothing_and_the_trial_goes_on(data, tmp_path):
    train = {"epochs": MANY_EPOCHS, "batch_size": 2}
    file = search_file(data, tmp_path, train=train)
    output = tmp_path / "results" / "out"
    process = commands.start("search.py", ["--config", file])
    deadline = time.monotonic() + PATIENCE_S
    while not list(output.glob("unfinished/sketch/*.state")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, ""), out
    before = trials(output)
    assert {trial.state for trial in before} <= {TrialState.WAITING, TrialState.COMPLETE}
    (waiting,) = [trial for trial in before if trial.state == TrialState.WAITING]
    assert 0 < len(waiting.intermediate_values) < MANY_EPOCHS

    code, out = run("--config", file, "--resume")
    assert code == 0, out
    after = trials(output)
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 2
    assert after[waiting.number].params == waiting.params
    # Values that were told are not told anew, even if they would be the same.
    kept = after[waiting.number].intermediate_values
    assert waiting.intermediate_values.items() <= kept.items()
    assert set(kept) == set(range(1, MANY_EPOCHS + 1))


def test_a_job_that_is_stopped_goes_on_from_the_last_epoch_of_each_run(three_cores, tmp_path):
    wanted = {"a": 3, "b": 3}
    job = StubJob(tmp_path, wanted, session={"seconds": 1.0})
    job.watcher.wait_for(lambda: len(job.watcher.epochs) >= 4)
    time.sleep(0.3)
    job.stop.set()
    job.wait()
    states = {state for name in wanted for _, state, _ in trial_states(job.storage, name)}
    assert states <= {"WAITING", "COMPLETE"} and "WAITING" in states

    again = StubJob(tmp_path, wanted)
    again.wait()
    again.check_complete(wanted, job)
    # No more was trained anew than what was being trained.
    assert sum(again.trained().values()) <= 6 * EPOCHS + 3


def test_a_finished_search_is_extended(data, tmp_path):
    """By trials, a seed and a forget set, at once; what was there is kept."""
    file = search_file(data, tmp_path)
    output = tmp_path / "results" / "out"
    code, out = run("--config", file)
    assert code == 0, out
    old_trials = trials(output)
    old_finals = {file: file.stat().st_mtime_ns for file in output.glob("studies/*/finals/*.npz")}
    # Best, paper's defaults, Baseline and zero-shot; the best may be the defaults, and it is
    # run again with the search's best seed, which may be the final one.
    assert len(old_finals) in (3, 4, 5)

    search = {"trials": 4, "scheduler": "none"}
    wider = {"search": search, "final": {"seeds": [0, 1]}, "forget": [["sketch"], ["photo"]]}
    file = search_file(data, tmp_path, **wider)
    code, out = run("--config", file, "--resume")
    assert code == 0, out
    new_trials = trials(output)
    assert [trial.number for trial in new_trials] == [0, 1, 2, 3]
    assert {trial.state for trial in new_trials} == {TrialState.COMPLETE}
    for old, new in zip(old_trials, new_trials, strict=False):
        assert (old.params, old.values, old.datetime_complete) == (
            new.params,
            new.values,
            new.datetime_complete,
        )
    assert len(trials(output, "photo")) == 4
    found = studies(output)
    for study in found.values():
        assert (study["complete"], study["n_trials"]) == (True, 4)
        assert study["best"]["seeds"] == [0, 1]
        assert study["baselines"]["baseline"]["seeds"] == [0, 1]
    new_finals = {file: file.stat().st_mtime_ns for file in output.glob("studies/*/finals/*.npz")}
    assert old_finals.items() <= new_finals.items(), "a final run was run again"
    assert any("photo" in file.parts for file in new_finals)

    # With the same once more: nothing is trained.
    code, out = run("--config", file, "--resume")
    assert code == 0, out
    again = {file: file.stat().st_mtime_ns for file in output.glob("studies/*/finals/*.npz")}
    assert again == new_finals
