"""One HTML page about a search, from its output alone.

python pipeline/report.py --output results/demo-20261124-101500
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import quote

import jinja2
import optuna
from optuna.trial import FrozenTrial
from pydantic import Field

from adu import storage
from adu.config import StrictModel
from adu.data.forget import forget_domains
from adu.errors import UserError
from pipeline.command import EXIT_OK, plain_console, run_and_exit, run_command
from pipeline.names import file_name
from pipeline.results.embedded import embedded
from pipeline.results.output import named_output
from pipeline.results.page import (
    Figure,
    StageRow,
    accuracy_rows,
    answer,
    best_options,
    counts,
    figure,
    gains_over_defaults,
    overall,
    stage_rows,
    sureness,
)
from pipeline.results.report_pictures import study_charts
from pipeline.studies.attributes import RECORD, stored_record
from pipeline.track import studies_of
from pipeline.tracking import registry
from pipeline.tracking.facts import Facts, StudyFacts, read_facts
from pipeline.tracking.fixed import SeedRun
from pipeline.tracking.truth import Truth
from pipeline.tracking.wanted import EVIDENCE

TEMPLATE = Path(__file__).with_name("report.html.j2")

# Pictures of the study's folder, in the order of the page, and what they show.
PICTURES = {
    "mem_against_for.png": "Mem against For: every trial on validation images, final runs on test "
    "images",
    "accuracy_by_domain.png": "Accuracy of each domain before and after",
    "accuracy_by_class.png": "Accuracy of each class in each domain before and after",
    "features.png": "Features of test images before and after",
    "attention.png": "Where the class token looks before and after, on a kept and the forgotten "
    "domain",
}

WIDE = ("accuracy_by_class.png", "features.png", "attention.png")
WIDE_CHART = "Parallel"

# What else lies in the output, and what it is.
FILES = {
    "summary.json": "every figure of the last table, where the time went",
    "figures.csv": "test figures of every final run, seed by seed",
    "images.csv": "the few-shot and validation images: id, domain, class, SHA-256",
    "search.log": "what happened when",
    "tracking.json": "what the figures are of: images, model, versions",
    "optuna.journal": "every trial, for optuna-dashboard",
}


class ReportConfig(StrictModel):
    """Make one self-contained HTML page about a search."""

    output: str = Field(description="the search's output: a folder or a URL")
    storage: str | None = Field(
        None, description="database of Optuna's studies; unset: the file in the output folder"
    )
    file: str | None = Field(None, description="the page; unset: report.html in the output folder")


@dataclass(frozen=True)
class Picture:
    """A picture within the page."""

    title: str
    png: bytes
    wide: bool


@dataclass
class StudyPage:
    """What the page says of a study."""

    name: str
    anchor: str
    status: str
    stages: list[StageRow]
    gain: Figure
    sure: str
    answer: list[str]
    model: dict[str, Any]
    configs: list[str]
    trials: dict[str, int]
    best: dict[str, str]
    accuracy: list[tuple[str, Figure, Figure]]
    pictures: list[Picture] = field(default_factory=list)
    # What attacks came to, and the page about them.
    verdict: str = ""
    evidence: str = ""

    def score(self, stage: str, name: str) -> Figure:
        """A figure of a stage; an empty one if it was not run."""
        found = [row.scores[name] for row in self.stages if row.stage == stage]
        return found[0] if found else Figure(None)


def report(config: ReportConfig) -> int:
    """Writes the page and tells where it is."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    output = named_output(config.output)
    facts = read_facts(output)
    if facts.kind != "search":
        raise UserError(f"output {output}: is a {facts.kind}, not a search")
    with tempfile.TemporaryDirectory() as folder:
        truth = Truth(facts, output, studies_of(facts, output, config.storage, Path(folder)))
        studies = [_study_page(truth, study) for study in facts.studies]
        times = _times(truth)
    file = config.file or storage.join(output, "report.html")
    # Links lead from the page to its neighbours.
    place = "" if config.file is None else f"{output}/"
    storage.write_bytes(file, _render(facts, output, place, studies, times).encode())
    plain_console(sys.stdout).print(f"report    {file}", soft_wrap=True)
    return EXIT_OK


def _study_page(truth: Truth, study: StudyFacts) -> StudyPage:
    trials, _ = truth.stored(study)
    finals = truth.finals(study)
    rows, gains = stage_rows(finals), gains_over_defaults(finals)
    searched = list(dict.fromkeys(name for trial in trials for name in trial.params))
    folder = storage.join(truth.output, study.folder)
    record = truth.finished(study)
    proof = record.proof if record else {}
    return StudyPage(
        study.name,
        f"study-{file_name(study.name)}",
        truth.status(study, trials).lower(),
        rows,
        figure([gain / 100 for gain in gains]),
        sureness(gains),
        answer(study.name, rows, gains),
        _model(folder),
        [storage.join(study.folder, "configs", name) for name in _configs(folder)],
        counts(trials),
        best_options(finals, searched),
        accuracy_rows(finals, forget_domains(study.forget, truth.facts.domains)),
        _pictures(folder, trials),
        proof.get("verdict", ""),
        storage.join(study.folder, EVIDENCE[0]) if proof else "",
    )


def _model(folder: str) -> dict[str, Any]:
    """What became of the study's best model in the registry; nothing if it is not there."""
    file = storage.join(folder, registry.FILE)
    if not storage.exists(file):
        return {}
    found: dict[str, Any] = json.loads(storage.read_bytes(file))
    return found


def _configs(folder: str) -> list[str]:
    return sorted(storage.names_in(storage.join(folder, "configs")))


def _pictures(folder: str, trials: Sequence[FrozenTrial]) -> list[Picture]:
    there = set(storage.names_in(folder))
    found = [
        Picture(title, storage.read_bytes(storage.join(folder, name)), name in WIDE)
        for name, title in PICTURES.items()
        if name in there
    ]
    return found + [
        Picture(title, png, WIDE_CHART in title) for title, png in study_charts(trials).items()
    ]


def _times(truth: Truth) -> dict[str, str]:
    wall_s = [
        stored_record(trial).wall_s
        for study in truth.facts.studies
        for trial in truth.stored(study)[0]
        if RECORD in trial.user_attrs
    ]
    runs: list[SeedRun] = [run for study in truth.facts.studies for run in truth.finals(study)]
    outcomes = [run.outcome for run in runs if run.outcome is not None]
    final_s = [o.ended_s - o.began_s for o in outcomes if o.began_s and o.ended_s]
    times = {"executor time of all trials": sum(wall_s)}
    if wall_s:
        times["a trial, on average"] = mean(wall_s)
    if final_s:
        times["a final run, on average"] = mean(final_s)
    return {name: _duration(seconds) for name, seconds in times.items()}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _render(
    facts: Facts,
    output: str,
    place: str,
    studies: Sequence[StudyPage],
    times: Mapping[str, str],
) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    n_pictures = sum(len(study.pictures) for study in studies)
    there = set(storage.names_in(output))
    return template.render(
        name=output.rsplit("/", 1)[-1],
        facts=_shown_facts(facts),
        studies=studies,
        answer=overall([(study.name, study.score("best", "h"), study.sure) for study in studies])
        if len(studies) > 1
        else studies[0].answer,
        times=times,
        files={place + name: text for name, text in FILES.items() if name in there},
        link=lambda file: place + quote(file),
        embedded=lambda png: embedded(png, n_pictures),
        synthetic=facts.synthetic,
    )


def _shown_facts(facts: Facts) -> dict[str, str]:
    shown = {
        "data set": f"{facts.data_set}, manifest {facts.digest[:12]}",
        "backbone": facts.backbone,
        "method": facts.method,
        **facts.params,
        **{name: facts.tags.get(name, "") for name in ("trials", "sampler", "ray_job_id")},
        "code": facts.origin.get("mlflow.source.git.commit", "")[:12]
        or facts.origin.get("adu_search_version", ""),
        "search id": facts.id,
    }
    return {name.replace("_", " "): value for name, value in shown.items() if value}


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_command(ReportConfig, report, {}, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    run_and_exit(main)
