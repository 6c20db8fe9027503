"""The live view: what it shows, on a terminal and where there is none."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from adu.training.trainer import EpochReport
from pipeline.executors.run import PROOF, TRIAL, Attacked, Run
from pipeline.results.progress import Progress, console_on
from pipeline.results.time_left import StudyWork
from tests.pipeline import records

ATTACKED = Attacked("adu", 1, {}, {})
WORK = StudyWork(trials=8, epochs=9, likely_epochs=9, again=0, finals=3)


def progress(console: Console, n_studies: int = 2) -> Progress:
    names = ["photo", "sketch", "art_painting+clipart"][:n_studies]
    return Progress(console, "search demo (synthetic)", names, WORK, 2, time.monotonic())


def report(epoch: int) -> EpochReport:
    return EpochReport(epoch, 9, 0.01, {"total": 1.0}, records.scores(0.9, 0.5), 1.0, 0.5, 64.0)


def frame(view: Progress, console: Console) -> list[str]:
    with console.capture() as captured:
        console.print(view._render())
    return [line.rstrip() for line in captured.get().splitlines()]


def run(number: int, study: str = "photo", tested: bool = False) -> Run:
    config = {"train": {"epochs": 9}}
    name = f"best-{number}" if tested else str(number)
    return Run(study, name, "best" if tested else TRIAL, config, {}, "", tested, number)


def busy(view: Progress) -> Progress:
    view.run_started(run(0))
    view.run_epoch(run(0), report(9), True)
    view.run_ended(run(0), records.trial(0, 0.9, 0.5))
    for number in (1, 2):
        view.run_started(run(number))
        view.run_epoch(run(number), report(4), True)
    return view


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_shows_studies_trials_best_h_and_time_left(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    lines = frame(busy(progress(console, 3)), console)
    assert max(len(line) for line in lines) <= width
    assert "elapsed, about" in lines[0] and "left" in lines[0]
    assert lines[1].split() == ["forget", "state", "trials", "best", "H", "now"]
    assert lines[2].split()[:4] == ["photo", "searching", "1/8", "64.3"]
    assert "epoch 4/9, epoch 4/9" in lines[2]
    assert "waiting" in lines[3] and "art_painting+clipart" in lines[4]


def test_where_not_all_studies_have_room_those_at_work_are_shown():
    console = Console(
        file=io.StringIO(), width=80, height=10, force_terminal=True, color_system=None
    )
    names = [f"study-{number}" for number in range(62)]
    view = Progress(console, "search", names, WORK, 2, time.monotonic())
    for name in names[:20]:
        view.study_state(name, "done")
    view.study_state("study-40", "searching")
    view.study_state("study-50", "final runs")
    view.run_ended(run(0, "study-50", tested=True), records.trial(0, 0.9, 0.5))
    lines = frame(view, console)
    assert len(lines) < 10
    shown = [line.split()[0] for line in lines[2:-1]]
    assert shown == ["study-0", "study-1", "study-2", "study-40", "study-50"]
    assert "final runs, 1 done" in lines[-2]
    assert lines[-1].split() == ["and", "17", "done,", "40", "waiting"]


def test_attacks_are_counted_model_by_model():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    view = progress(console)
    view.study_state("photo", "final runs")
    view.run_ended(run(0, tested=True), records.trial(0, 0.9, 0.5))
    view.study_state("photo", "proving")
    models = [Run("photo", name, PROOF, {}, {}, "", True, attacked=ATTACKED) for name in "ab"]
    for model in models:
        view.run_started(model)
        view.run_attacked(model, 4, 13)
    assert "proving, 0 done" in frame(view, console)[2]
    view.run_ended(models[0], records.trial(-1, 0.9, 0.5))
    line = frame(view, console)[2]
    assert "proving, 1 done" in line and line.endswith("attack 4/13")


def test_a_terminal_that_is_gone_or_full_ends_nothing(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pipeline.results.progress import quiet_ray\n"
        "with quiet_ray(Path(sys.argv[1])) as console:\n"
        "    for _ in range(3000):\n"
        "        console.file.write('more than a pipe holds\\n')\n"
        "Path(sys.argv[2]).touch()\n"
    )
    for number, redirection in enumerate(
        (">&-", ">/dev/full", "2>&- >&-", "| head -1 > /dev/null")
    ):
        done = tmp_path / str(number)
        command = f'"{sys.executable}" -c "{program}" {tmp_path}/log {done} {redirection}'
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
        ran = subprocess.run(
            ["bash", "-c", command], stderr=subprocess.PIPE, text=True, env=environment
        )
        assert done.exists(), (redirection, ran.stderr)
        assert "Traceback" not in ran.stderr, redirection


def test_without_a_terminal_one_line_for_what_ended():
    stream = io.StringIO()
    with progress(console_on(stream)) as view:
        busy(view)
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("forget photo: searching")
    assert "forget photo: trial 0 complete, validation H 64.3 %" in lines[1]
    assert len(lines) == 2, "epochs are no news in a log"


def test_noise_goes_to_the_log_and_the_console_to_the_terminal(tmp_path):
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from pipeline.results.progress import quiet_ray\n"
        "with quiet_ray(Path(sys.argv[1])) as console:\n"
        "    console.print('shown')\n"
        "    print('python noise')\n"
        "    os.write(2, b'native noise')\n"
        "    os.system('echo child noise')\n"
        "print('after')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},  # noqa: PTH109
        check=True,
    )
    assert ran.stdout.split() == ["shown", "after"]
    assert ran.stderr == ""
    log = (tmp_path / "log").read_text()
    assert all(word in log for word in ("python noise", "native noise", "child noise"))
