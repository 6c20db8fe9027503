"""A study's proof: the runs that it is made of, their order, and what is tried again."""

import pytest

from adu.config import parse_config
from adu.training.config import RunConfig
from pipeline.jobs.config import SearchConfig
from pipeline.jobs.finals import seeded_run
from pipeline.jobs.plan import PROVE, make_plan
from pipeline.jobs.proof import StudyProof, n_attacked
from pipeline.studies.records import StudyRecord
from tests.pipeline import records
from tests.tiny import tiny_manifest

SPACE = {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return tiny_manifest(tmp_path_factory.mktemp("data"))


@pytest.fixture
def plan(manifest, tmp_path):
    def make(**changes):
        data = {"manifest": str(manifest), "shots": 2, "val_shots": 1}
        values = {"space": SPACE, "output": str(tmp_path / "out"), "context": {"data": data}}
        return make_plan(parse_config(SearchConfig, {**values, **changes}, "file.yaml"), None)

    return make


def study_proof(plan, folder):
    base = RunConfig(forget=("sketch",))
    best = [(seeded_run(base, seed), f"{folder}/finals/{seed}.npz") for seed in (0, 1)]
    return StudyProof(plan, "sketch", str(folder), {}, best)


def drained(source):
    runs = []
    while source.wants:
        runs.append(source.propose())
    return runs


def test_references_are_trained_before_every_model_is_attacked(plan, tmp_path):
    proof = study_proof(plan(prove=True), tmp_path)
    added, ended = [], []
    proof.begin(added.append, ended.append)
    (references,) = added
    trained = drained(references)
    names = ("never_shown", "baseline", "forget_only")
    assert [run.name for run in trained] == [
        f"reference {name}-{seed}" for seed in (0, 1) for name in names
    ]
    # The same configuration as the best one's, but not the same images.
    assert len({run.place for run in trained}) == len(trained)
    assert all(run.tested for run in trained)
    references.on_end(references)
    attacks = added[1]
    models = drained(attacks)
    assert len({run.key for run in models}) == len(models)
    assert [(run.attacked.label, run.attacked.seed) for run in models] == [
        *(("untouched", 0), ("knows_nothing", 0)),
        *((name, seed) for seed in (0, 1) for name in (*names, "adu")),
    ]
    best, (reference,) = models[-1], (run for run in trained if run.name.endswith("shown-1"))
    assert best.attacked.trained["adu"] == f"{tmp_path}/finals/1.npz"
    assert best.attacked.trained["never_shown"] == reference.outcome_file
    attacks.end(best, records.trial(-1, 0, 0, "failed"))
    attacks.on_end(attacks)
    assert ended == [["sketch/adu-1, attacked: ValueError: boom"]]


def test_without_its_references_nothing_is_attacked(plan, tmp_path):
    added, ended = [], []
    study_proof(plan(prove={"quick": True}), tmp_path).begin(added.append, ended.append)
    (references,) = added
    first, _ = drained(references)
    references.n_live = 1
    references.end(first, records.trial(-1, 0, 0, "failed"))
    references.on_end(references)
    assert ended == [["sketch/reference never_shown-0: ValueError: boom"]]
    assert len(added) == 1


def test_how_many_runs_there_are_is_known_beforehand(plan):
    assert n_attacked(plan()) == (0, 0)
    assert n_attacked(plan(prove="true")) == (12, 2 + 4 * 4)
    space = {"method.n_ctx": {"choices": [2, 4], "default": 2}}
    quick = plan(prove={"quick": True}, method={"name": "baseline"}, space=space)
    assert n_attacked(quick) == (4, 2 + 4 * 2)
    whole = plan(prove={}, method={"name": "baseline"}, space=space)
    assert n_attacked(whole) == (8, 2 + 4 * 3), "the model is no reference of its own"


def test_a_study_that_has_ended_is_looked_at_again_for_a_proof_alone(plan):
    def ended(asked):
        return StudyRecord(("sketch",), [], None, {}, complete=True, asked=asked)

    plain, proved = plan(), plan(prove=True)
    assert plain.has_ended(ended(plain.asked()))
    assert plain.has_ended(ended(proved.asked())), "a proof more does no harm"
    assert proved.has_ended(ended(proved.asked()))
    assert not proved.has_ended(ended(plain.asked()))
    assert not proved.has_ended(ended(plan(prove={"quick": True}).asked()))
    assert PROVE not in plain.asked()
