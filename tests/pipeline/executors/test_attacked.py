"""A model of a proof on a worker: it is found in the outcome files, and nothing is done twice."""

from dataclasses import asdict, replace

import pytest

from adu.errors import UserError
from adu.evidence.attacks import BatteryConfig
from adu.evidence.bench import outcome_file
from adu.evidence.proof import ProofConfig
from adu.evidence.references import reference_run
from pipeline.executors.attacked import AttackedModel
from pipeline.executors.run import PROOF, Attacked, Run
from pipeline.executors.session import AduTraining
from tests.adu.evidence.subjects import tiny_run
from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return tiny_context(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def trained(context, tmp_path_factory):
    """Outcome files of a model and of one that was never shown the domain, by label."""
    folder = tmp_path_factory.mktemp("outcomes")
    found = {}
    for label, stage in (("baseline", "best"), ("never_shown", "never_shown")):
        config = reference_run("never_shown", tiny_run()).model_dump(mode="json", by_alias=True)
        training = AduTraining(Run("sketch", label, stage, config, {}, ""), context, None)
        reports = list(training.epochs())
        file = folder / f"{label}.npz"
        file.write_bytes(training.test(reports))
        found[label] = str(file)
    return found


@pytest.fixture
def few_attacks(monkeypatch):
    """Two of the attacks, which take a moment."""
    every = BatteryConfig.attacks
    names = ("asked", "membership")
    monkeypatch.setattr(
        BatteryConfig, "attacks", lambda self: {name: every(self)[name] for name in names}
    )


def run_of(label, trained, place):
    asked = ProofConfig(quick=True).written_out().model_dump(mode="json")
    config = tiny_run().model_dump(mode="json", by_alias=True)
    attacked = Attacked(label, 0, asked, trained)
    return Run("sketch", label, PROOF, config, {}, str(place), True, attacked=attacked)


def test_what_is_done_is_not_done_again(context, trained, few_attacks, tmp_path):
    run = run_of("baseline", trained, tmp_path)
    first = AttackedModel(run, context, None)
    assert list(first.attacks()) == [(1, 2), (2, 2)]
    files = [outcome_file(str(tmp_path), "baseline", 0, name) for name in ("asked", "membership")]
    before = [open(file).read() for file in files]  # noqa: PTH123, SIM115
    assert "AUC, forgotten shots" in before[1], "there was no reference"
    again = AttackedModel(run, context, first.material)
    assert again.material is first.material
    assert list(again.attacks()) == [(1, 2), (2, 2)]
    assert [open(file).read() for file in files] == before  # noqa: PTH123, SIM115
    fewer = replace(run.attacked, config={**run.attacked.config, "material": {"test_per_cell": 1}})
    other = AttackedModel(replace(run, attacked=fewer), context, first.material)
    assert other.material is not first.material


def test_both_ends_of_the_scale_need_nothing_that_was_trained(context, few_attacks, tmp_path):
    for label in ("untouched", "knows_nothing"):
        assert list(AttackedModel(run_of(label, {}, tmp_path), context, None).attacks())


def test_never_shown_was_not_shown_the_domain(context, monkeypatch):
    config = tiny_run().model_dump(mode="json", by_alias=True)
    shown = {}
    for stage in ("best", "never_shown"):
        training = AduTraining(Run("sketch", stage, stage, config, {}, ""), context, None)
        domains = training._trainer.context.train.domain_N.unique().tolist()
        shown[stage] = {context.domains[d] for d in domains}
    assert shown["best"] - shown["never_shown"] == {"sketch"}


def test_a_model_that_is_not_there_is_a_line(context, trained, few_attacks, tmp_path):
    missing = {**trained, "baseline": str(tmp_path / "nowhere.npz")}
    with pytest.raises(UserError, match="nowhere.npz: holds no checkpoint of baseline"):
        list(AttackedModel(run_of("baseline", missing, tmp_path), context, None).attacks())


def test_what_is_to_be_tried_survives_the_way_to_the_worker():
    asked = ProofConfig(quick=True).written_out()
    sent = ProofConfig.model_validate(asked.model_dump(mode="json"))
    assert sent == asked and asdict(Attacked("a", 0, {}, {}))
