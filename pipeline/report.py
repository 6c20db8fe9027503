"""One HTML page about a search, from MLflow and Optuna alone.

python pipeline/report.py --output results/demo-20261124-101500
"""

from __future__ import annotations

import base64
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

import jinja2
import optuna
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from pydantic import Field

from adu import storage
from adu.config import StrictModel
from adu.errors import UserError
from pipeline.command import EXIT_OK, plain_console, run_and_exit, run_command
from pipeline.jobs.config import TrackingConfig
from pipeline.names import mlflow_name, parse_forget_name
from pipeline.results.comparison import defaults_named, judgement
from pipeline.results.output import absolute_output, fetch_journal, search_id
from pipeline.results.report_pictures import study_charts
from pipeline.studies.records import METHOD_LABELS, STAGES, stage_label
from pipeline.studies.storage import read_journal, shown
from pipeline.tracking.tracker import LoggedRun, SearchRuns, Tracker, default_uri

TEMPLATE = Path(__file__).with_name("report.html.j2")

# Pictures of the study's run in MLflow, in the order of the page, and what they show.
LOGGED_PICTURES = {
    "mem_against_for.png": "Mem against For: every trial on validation images, final runs on test "
    "images",
    "accuracy_by_domain.png": "Accuracy of each domain before and after",
    "features.png": "Features of test images before and after",
    "attention.png": "Where the class token looks before and after, on a kept and the forgotten "
    "domain",
}

WIDE = ("features.png", "attention.png")

SHORTCUTS = {"output": "output", "tracking.uri": "tracking-uri", "storage": "storage"}


class ReportConfig(StrictModel):
    """Make one self-contained HTML page about a search."""

    output: str = Field(description="the search's output: a folder or a URL")
    tracking: TrackingConfig = TrackingConfig()
    storage: str | None = Field(
        None, description="database of Optuna's studies; unset: the file in the output folder"
    )
    file: str | None = Field(None, description="the page; unset: report.html in the output folder")


@dataclass(frozen=True)
class Stage:
    """A row of a result table: mean and deviation over seeds, in %, as text."""

    label: str
    mem: str
    for_: str
    h: str
    domain_accuracy: str


@dataclass(frozen=True)
class Picture:
    """A picture within the page."""

    title: str
    data: str
    wide: bool


@dataclass
class StudyPage:
    """What the page says of a study."""

    name: str
    status: str
    stages: list[Stage]
    gain: str
    trials: dict[str, int]
    best: dict[str, str]
    accuracy: list[tuple[str, str, str]]
    pictures: list[Picture] = field(default_factory=list)


def report(config: ReportConfig) -> int:
    """Writes the page, logs it, and tells where it is."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    output = _output(config)
    uri = config.tracking.uri or default_uri(Path(output))
    Tracker.check(config.tracking.uri)
    runs = SearchRuns(uri, search_id(output))
    if not runs.studies:
        raise UserError(f"output {output}: {uri} has no search from there")
    with tempfile.TemporaryDirectory() as folder:
        database = _open(config.storage, output, Path(folder))
        studies = [_study_page(study, runs, database, config, output) for study in runs.studies]
    page = _render(output.rsplit("/", 1)[-1], runs, studies)
    file = config.file or storage.join(output, "report.html")
    storage.write_bytes(file, page.encode())
    runs.log_report(page)
    plain_console(sys.stdout).print(f"report    {file}", soft_wrap=True)
    return EXIT_OK


def _output(config: ReportConfig) -> str:
    output = absolute_output(config.output)
    if storage.is_local(output):
        folder = Path(output)
        # Such as `latest`.
        return str(folder.parent / folder.readlink()) if folder.is_symlink() else output
    if config.tracking.uri is None:
        raise UserError("tracking.uri: must be set where the output is a URL")
    return output


def _open(url: str | None, output: str, folder: Path) -> BaseStorage:
    if url is not None:
        try:
            return RDBStorage(url)
        except Exception as error:
            raise UserError(f"storage {shown(url)}: cannot be opened") from error
    try:
        journal = fetch_journal(output, folder)
    except UserError as error:
        raise UserError(f"{error} (a database is named with --storage)") from error
    return read_journal(journal)


def _study_page(
    run: LoggedRun, runs: SearchRuns, database: BaseStorage, config: ReportConfig, output: str
) -> StudyPage:
    name = run.tags["forget"]
    stored = name if config.storage is None else f"{search_id(output)}/{name}"
    trials = _trials(database, stored)
    finals = runs.finals(run.run_id)
    by_stage = {stage: [f for f in finals if f.tags["stage"] == stage] for stage in STAGES}
    states = [trial.state.name for trial in trials]
    page = StudyPage(
        name,
        run.status,
        [_stage(_label(stage, found), found) for stage, found in by_stage.items() if found],
        _gain(by_stage),
        {
            "complete": states.count("COMPLETE"),
            "stopped early": states.count("PRUNED"),
            "failed": states.count("FAIL"),
        },
        _best_options(by_stage["best"], runs.trials(run.run_id)),
        _accuracy(name, by_stage),
    )
    page.pictures = _pictures(run, runs, trials)
    return page


def _trials(database: BaseStorage, name: str) -> list[FrozenTrial]:
    try:
        return optuna.load_study(study_name=name, storage=database).get_trials()
    except KeyError as error:
        raise UserError(f"study '{name}': Optuna's storage has none of that name") from error


def _label(stage: str, finals: Sequence[LoggedRun]) -> str:
    method = finals[0].tags["method"]
    recipe = finals[0].params.get("recipe")
    return stage_label(stage, METHOD_LABELS.get(method, method), recipe)


def _stage(label: str, finals: Sequence[LoggedRun]) -> Stage:
    def cell(metric: str) -> str:
        values = [100 * final.metrics[metric] for final in finals if metric in final.metrics]
        if not values:
            return "–"
        return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")

    return Stage(
        label, cell("test/mem"), cell("test/for"), cell("test/h"), cell("test/domain_accuracy")
    )


def _gain(by_stage: Mapping[str, Sequence[LoggedRun]]) -> str:
    """The paired difference of the search and the defaults that it started from."""
    paper = {final.params["seed"]: final.metrics["test/h"] for final in by_stage["paper_defaults"]}
    gains = [
        100 * (final.metrics["test/h"] - paper[final.params["seed"]])
        for final in by_stage["best"]
        if final.params["seed"] in paper
    ]
    if not gains:
        return "There is no final run to compare with the defaults."
    named = defaults_named(by_stage["paper_defaults"][0].params.get("recipe"))
    spread = f" ± {stdev(gains):.1f}" if len(gains) > 1 else ""
    seeds = f"{len(gains)} seed{'s' * (len(gains) > 1)}"
    return (
        f"The search {judgement(gains, named)}: {mean(gains):+.1f}{spread} points of H "
        f"on test images, seed by seed ({seeds})."
    )


def _best_options(finals: Sequence[LoggedRun], trials: Sequence[LoggedRun]) -> dict[str, str]:
    """The chosen values of what was searched."""
    searched = {name for trial in trials for name in trial.params}
    chosen = finals[0].params if finals else {}
    return {name: _short(chosen[name]) for name in sorted(searched) if name in chosen}


def _short(value: str) -> str:
    """A number with as many digits as a person reads; anything else as it is."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


def _accuracy(
    forget: str, by_stage: Mapping[str, Sequence[LoggedRun]]
) -> list[tuple[str, str, str]]:
    """Domain, accuracy before and after, in %."""
    prefix = "test/accuracy/"
    if not by_stage["zero_shot"] or not by_stage["best"]:
        return []
    before, after = by_stage["zero_shot"][0].metrics, by_stage["best"]
    forgotten = parse_forget_name(forget)
    # MLflow's names of metrics hold less than a domain's name may.
    names = {mlflow_name(domain): domain for domain in forgotten} | {
        domain: domain for domain in forgotten
    }
    rows = []
    for metric in sorted(before):
        if metric.startswith(prefix):
            domain = metric.removeprefix(prefix)
            label = f"{names[domain]} (forget)" if domain in names else domain
            values = [final.metrics[metric] for final in after]
            rows.append((label, f"{100 * before[metric]:.1f}", f"{100 * mean(values):.1f}"))
    return rows


def _pictures(run: LoggedRun, runs: SearchRuns, trials: Sequence[FrozenTrial]) -> list[Picture]:
    with tempfile.TemporaryDirectory() as folder:
        logged = runs.pictures(run.run_id, Path(folder))
        found = [
            Picture(title, _embedded(logged[name]), wide=name in WIDE)
            for name, title in LOGGED_PICTURES.items()
            if name in logged
        ]
    return found + [
        Picture(title, _embedded(data), wide="Parallel" in title)
        for title, data in study_charts(trials).items()
    ]


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _render(name: str, runs: SearchRuns, studies: Sequence[StudyPage]) -> str:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(name=name, facts=_facts(runs), studies=studies, time=_time(runs))


def _facts(runs: SearchRuns) -> dict[str, str]:
    tags, params = runs.studies[0].tags, runs.studies[0].params
    facts = {
        "data set": f"{runs.experiment}, manifest {tags['manifest_digest'][:12]}",
        "backbone": tags["backbone"],
        "method": tags["method"],
        "shots": params["shots"],
        "trials a study": params["trials"],
        "epochs": params["epochs"],
        "sampler": params["sampler"],
        "searched": params["searched"],
        "code": tags.get("mlflow.source.git.commit", tags.get("adu_search_version", ""))[:12],
        "Ray job": tags.get("ray_job_id", ""),
    }
    if tags["synthetic"] == "true":
        facts["note"] = "The images are synthetic: made up by a program."
    return {name: value for name, value in facts.items() if value}


def _time(runs: SearchRuns) -> dict[str, str]:
    trials = [trial for study in runs.studies for trial in runs.trials(study.run_id)]
    wall_s = [trial.metrics["wall_s"] for trial in trials if "wall_s" in trial.metrics]
    first = min(run.start_s for run in runs.all)
    last = max(run.end_s for run in runs.all)
    time = {
        "from the first run to the end of the last": _duration(last - first),
        "executor time of all trials": _duration(sum(wall_s)),
    }
    if wall_s:
        time["a trial, on average"] = _duration(mean(wall_s))
    return time


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return run_command(ReportConfig, report, SHORTCUTS, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    run_and_exit(main)
