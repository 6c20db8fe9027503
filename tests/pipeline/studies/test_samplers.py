"""Samplers by name and storages, with Optuna itself and a real PostgreSQL server."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import get_args

import optuna
import pytest

from adu.errors import UserError
from adu.trainer import RunConfig
from pipeline.studies.samplers import SamplerName, make_sampler, open_storage, shown
from pipeline.studies.space import Parameter, suggest

BASE = RunConfig(forget=("sketch",))
SPACE = {
    "train.lr": Parameter(low=0.01, high=1, log=True, default=0.1),
    "method.instapg": Parameter(choices=(True, False), default=True),
    "method.instapg_layer": Parameter(low=1, high=3, default=2, when={"method.instapg": (True,)}),
}
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.mark.parametrize("objectives", [1, 2])
@pytest.mark.parametrize("name", get_args(SamplerName))
def test_every_sampler_proposes_in_a_conditional_space(name, objectives):
    study = optuna.create_study(directions=["maximize"] * objectives)
    for number in range(6):
        study.sampler = make_sampler(name, seed=number, startup_trials=2, conditional=True)
        trial = study.ask()
        suggest(trial, SPACE, BASE)
        study.tell(trial, [number / 10] * objectives)
    assert len({trial.params["train.lr"] for trial in study.trials}) > 2


@pytest.mark.parametrize("name", ["tpe", "gp", "nsga2", "random"])
def test_a_sampler_that_is_made_anew_proposes_the_same(name):
    def proposals():
        study = optuna.create_study(direction="maximize")
        for number in range(5):
            study.sampler = make_sampler(name, seed=number, startup_trials=2, conditional=False)
            study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), number)
        return [trial.params for trial in study.trials]

    assert proposals() == proposals()


def test_a_journal_whose_writer_was_killed_is_mended(tmp_path):
    journal = tmp_path / "optuna.journal"
    study = optuna.create_study(storage=open_storage(None, journal), study_name="sketch")
    study.ask()
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker')
    Path(f"{journal}.lock").symlink_to(journal)
    again = optuna.load_study(storage=open_storage(None, journal), study_name="sketch")
    again.ask()
    third = optuna.load_study(storage=open_storage(None, journal), study_name="sketch")
    assert len(third.trials) == 2


def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path):
    url = "postgresql://me:secret@127.0.0.1:9/studies"
    with pytest.raises(UserError) as error:
        open_storage(url, tmp_path / "journal")
    assert str(error.value).startswith("search.storage postgresql://me:***@127.0.0.1:9/studies: ")
    assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="search.storage nonsense: cannot be opened"):
        open_storage("nonsense", tmp_path / "journal")
    assert shown("nonsense") == "nonsense"


@pytest.fixture
def postgres(tmp_path, free_port):
    """URL of a database of a real PostgreSQL server."""
    if not POSTGRES:
        pytest.skip("needs PostgreSQL in /usr/lib/postgresql")
    # PostgreSQL refuses to run as root.
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    folder = tmp_path / "postgres"
    folder.mkdir()
    subprocess.run(["chown", "nobody", folder], check=True)
    for parent in folder.parents[:3]:
        parent.chmod(0o755)
    bin_ = POSTGRES[-1]
    subprocess.run([*as_user, bin_ / "initdb", "-A", "trust", "-D", folder], check=True, stdout=-3)
    options = f"-p {free_port} -h 127.0.0.1 -k {folder}"
    control = [*as_user, bin_ / "pg_ctl", "-D", folder, "-o", options, "-l", folder / "log", "-w"]
    subprocess.run([*control, "start"], check=True, stdout=-3)
    try:
        yield f"postgresql+psycopg://nobody@127.0.0.1:{free_port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=-3)


def test_a_database_holds_studies_too(postgres, tmp_path):
    study = optuna.create_study(storage=open_storage(postgres, tmp_path / "j"), study_name="s")
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    again = optuna.load_study(storage=open_storage(postgres, tmp_path / "j"), study_name="s")
    assert again.trials[0].value == 0.5
    assert not (tmp_path / "j").exists()
