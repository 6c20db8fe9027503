"""What a search tells at its end: the same in the file, on the terminal and after a restart."""

from __future__ import annotations

import io
import json
import re
from statistics import stdev

import pytest
from rich.console import Console

from pipeline.results.summary import SearchRecord, Timing, render_summary, write_summary
from pipeline.studies.records import StudyRecord, read_study_record, write_study_record
from tests.pipeline import records


def search(*studies: StudyRecord, **changes) -> SearchRecord:
    timing = Timing(100.0, 20.0, 60.0, 0.3)
    return SearchRecord("tiny", list(studies), timing, synthetic=True, **changes)


def printed(record: SearchRecord, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(render_summary(record, "results/run", "make ui"))
    return console.file.getvalue()


def test_the_file_has_what_was_promised(tmp_path):
    write_summary(search(records.study()), str(tmp_path / "summary.json"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    (study,) = summary["studies"]
    assert (study["forget"], study["n_trials"], study["selected_on"]) == (["sketch"], 4, "val")
    assert (study["n_stopped"], study["n_failed"]) == (1, 1)
    assert study["best"]["trial"] == 2
    assert study["best"]["test"] == {"mem": 0.95, "for": 0.9, "h": pytest.approx(0.9243243)}
    assert study["best"]["val"]["mem"] == 0.9
    assert set(study["baselines"]) == {"zero_shot", "baseline", "paper_defaults"}
    assert summary["timing"] == {
        "wall_s": 100.0,
        "executor_start_s": 20.0,
        "train_s": 60.0,
        "trial_overhead_median_s": 0.3,
    }


def test_several_seeds_give_mean_and_deviation(tmp_path):
    write_summary(search(records.study()), str(tmp_path / "summary.json"))
    study = json.loads((tmp_path / "summary.json").read_text())["studies"][0]
    defaults = study["baselines"]["paper_defaults"]
    assert defaults["test"]["mem"] == pytest.approx(0.85)
    assert defaults["test_std"]["mem"] == pytest.approx(stdev([0.9, 0.8]))
    assert "test_std" not in study["baselines"]["baseline"]
    assert "85.0 ± 7.1" in printed(search(records.study()))


def test_a_study_survives_its_file(tmp_path):
    study = records.study()
    write_study_record(study, str(tmp_path / "sketch.json"))
    assert read_study_record(str(tmp_path / "sketch.json")) == study


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width):
    text = printed(search(records.study()), width)
    lines = text.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert "(synthetic data)" in lines[0]
    for label in ("zero-shot", "Baseline", "ADU, paper defaults", "ADU, searched"):
        assert any(label in line and "%" not in line for line in lines)
    assert "results   results/run" in text and "browse    make ui" in text


def test_an_interrupted_search_shows_what_is_finished():
    trials = [records.trial(0, 0.9, 0.5)]
    unfinished = StudyRecord(("photo",), trials, trials[0], {}, complete=False)
    text = printed(search(records.study(), unfinished, interrupted=True))
    assert "not finished: 1 trial" in text
    assert "Interrupted: the table holds what was finished." in text


def test_a_model_that_has_lost_what_it_should_keep_is_flagged(tmp_path):
    study = records.study(best=(0.5, 0.9))
    text = printed(search(study))
    assert re.search(r"ADU, searched +│ +50.0 ! │", text), text
    assert "! LOST what it should keep: Mem is below search.min_mem (unset: 80%" in text
    assert "It LOST what it should keep: photo." in " ".join(text.split())
    write_summary(search(study), str(tmp_path / "summary.json"))
    (told,) = json.loads((tmp_path / "summary.json").read_text())["studies"]
    assert told["lost"] == ["best"]
    assert "LOST" not in printed(search(records.study()))


def test_what_attacks_came_to_is_said_and_kept(tmp_path):
    study = records.study()
    write_summary(search(study), str(tmp_path / "summary.json"))
    assert json.loads((tmp_path / "summary.json").read_text())["studies"][0]["proof"] is None
    study.proof = {"verdict": "Forgotten, as far as was tested.", "distance": 0.1}
    write_summary(search(study), str(tmp_path / "summary.json"))
    (kept,) = json.loads((tmp_path / "summary.json").read_text())["studies"]
    assert kept["proof"] == study.proof
    assert "sketch, attacked: Forgotten, as far as was tested." in printed(search(study))
    write_study_record(study, str(tmp_path / "study.json"))
    assert read_study_record(str(tmp_path / "study.json")).proof == study.proof


def test_a_configuration_and_its_seeds_are_one_row(tmp_path):
    study = records.study()
    study.trials[2].again[1000] = records.scores(0.8, 0.6)
    write_summary(search(study), str(tmp_path / "summary.json"))
    (told,) = json.loads((tmp_path / "summary.json").read_text())["studies"]
    (row,) = told["compared"]
    assert (row["trial"], row["val"]["mem"]) == (2, pytest.approx(0.85))
    assert len(row["val_h_by_seed"]) == 2
