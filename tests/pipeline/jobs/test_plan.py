"""What is wrong with a search's configuration is said in one line, before anything starts."""

from pathlib import Path

import pytest
import yaml

from adu.config import parse_config
from adu.errors import UserError
from pipeline.command import load_config
from pipeline.jobs.config import SHORTCUTS, SearchConfig
from pipeline.jobs.plan import make_plan
from pipeline.names import forget_name
from pipeline.studies.records import StudyRecord, write_study_record
from tests.pipeline import records
from tests.tiny import DOMAINS, tiny_manifest

SPACES = sorted((Path(__file__).parents[3] / "search_spaces").glob("*.yaml"))
SPACE = {"method.gamma": {"low": 0.1, "high": 30, "log": True, "default": 30}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return tiny_manifest(tmp_path_factory.mktemp("data"))


def no_demo(folder):
    raise AssertionError("asked for the demo")


@pytest.fixture
def plan(manifest, tmp_path):
    def make(**changes):
        data = {"manifest": str(manifest), "shots": 2, "val_shots": 1}
        values = {"space": SPACE, "output": str(tmp_path / "out"), "context": {"data": data}}
        config = parse_config(SearchConfig, {**values, **changes}, "file.yaml")
        return make_plan(config, no_demo)

    return make


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.name)
def test_the_committed_search_spaces_are_valid(file):
    parse_config(SearchConfig, yaml.safe_load(file.read_text()), str(file))


def test_every_domain_is_forgotten_in_turn_unless_told_otherwise(plan):
    assert plan().forget_sets == tuple((domain,) for domain in DOMAINS)
    assert plan(forget=["sketch", ["photo", "clipart"]]).forget_sets == (
        ("sketch",),
        ("clipart", "photo"),
    )
    pairs = plan(forget={"size": 2}).forget_sets
    assert [forget_name(forget) for forget in pairs] == [
        "clipart+photo",
        "clipart+sketch",
        "photo+sketch",
    ]


@pytest.mark.parametrize(
    ("forget", "says"),
    [
        (["cartoon"], "forget domain 'cartoon': unknown (known domains: clipart, photo, sketch)"),
        ([list(DOMAINS)], "is all domains, none is left to retain"),
        ({"size": 3}, "must leave a domain to retain (domains: clipart, photo, sketch)"),
        (["photo", "photo"], "none twice"),
        ([], "at least one forget set"),
    ],
)
def test_a_forget_set_that_cannot_be_is_refused(plan, forget, says):
    with pytest.raises(UserError) as error:
        plan(forget=forget)
    assert says in str(error.value)


def test_too_few_images_and_missing_manifests_are_found_before_anything_starts(plan, manifest):
    too_many = {"manifest": str(manifest), "shots": 50, "val_shots": 1}
    with pytest.raises(UserError, match="fewer than 50 shots"):
        plan(context={"data": too_many})
    with pytest.raises(UserError, match="nowhere: has no card.json"):
        plan(context={"data": {"manifest": "nowhere"}})


def test_workers_are_given_absolute_paths(plan, manifest, monkeypatch):
    monkeypatch.chdir(manifest.parent)
    data = {"manifest": "manifest", "shots": 2, "val_shots": 1}
    context = plan(context={"data": data}).context
    assert context.data.manifest == str(manifest)
    assert context.backbone.name == "demo"


def test_what_makes_a_search_another_one(plan):
    first = plan().open_output()
    plan(resume=True, resources={"executors": 1}).open_output()
    # More of the same is the same search.
    more = {"trials": 60, "sampler": "gp", "wall_time_s": 60}
    again = plan(resume=True, search=more, final={"seeds": [3, 4]}, forget=["sketch"])
    assert again.open_output().search_id == first.search_id
    # Trials that could not be compared are another one.
    with pytest.raises(UserError, match="train.epochs is 50 there and 3 now"):
        plan(resume=True, train={"epochs": 3}).open_output()
    wider = {"method.gamma": {**SPACE["method.gamma"], "high": 60}}
    with pytest.raises(UserError, match="space.method.gamma.high is 30 there and 60 now"):
        plan(resume=True, space=wider).open_output()
    with pytest.raises(UserError, match="space.train.lr is null there and "):
        plan(resume=True, space={**SPACE, "train.lr": 0.1}).open_output()


def test_a_grid_that_the_trials_do_not_hold_is_refused(plan):
    with pytest.raises(UserError) as error:
        plan(search={"sampler": "grid", "grid_points": 30, "trials": 20})
    assert str(error.value) == (
        "search.trials = 20: the grid of clipart has 30 points (raise search.trials, or lower "
        "search.grid_points)"
    )


def test_overrides_of_a_domain_and_of_one_set_change_the_space(plan):
    narrow = {"low": 1, "high": 2, "default": 1}
    here = plan(
        forget={"size": [1, 2]},
        overrides={
            "sketch": {"method.gamma": narrow, "train.lr": 0.01},
            "photo+sketch": {"train.lr": 0.02},
        },
    )
    assert here.space(("photo",))["method.gamma"].high == 30
    assert here.space(("sketch",))["method.gamma"].high == 2
    assert here.space(("clipart", "sketch"))["train.lr"].default == 0.01
    assert here.space(("photo", "sketch"))["train.lr"].default == 0.02
    assert len(here.forget_sets) == 6
    with pytest.raises(UserError, match="forget domain 'drawing': unknown"):
        plan(overrides={"drawing": {}})
    with pytest.raises(UserError, match=r"space.train.lr: train.lr = -1"):
        plan(overrides={"sketch": {"train.lr": -1}})


def test_a_warm_start_takes_the_best_of_an_earlier_search(plan, tmp_path):
    earlier = tmp_path / "earlier"
    write_study_record(records.study(), str(earlier / "studies" / "sketch.json"))
    here = plan(search={"warm_start": [str(earlier), "siblings"]})
    siblings = [{"method.gamma": 2.0}]
    study = here.study(("photo",), here.open_output(), None, lambda: siblings)
    assert study.first() == [{"method.gamma": 3.0, "train.lr": 0.01}, {"method.gamma": 2.0}]
    with pytest.raises(UserError, match="search.warm_start nowhere: is neither the output folder"):
        plan(search={"warm_start": ["nowhere"]})


def test_the_password_of_a_database_is_not_written_down(plan, tmp_path):
    here = plan(search={"storage": "postgresql://me:secret@db/studies"})
    output = here.open_output()
    assert "secret" not in (tmp_path / "out" / "search.json").read_text()
    stored = here.study(("photo",), output, None, list).stored_name
    assert stored == f"{output.search_id}/photo"


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_papers_own_recipe_takes_any_number_of_epochs(plan, epochs):
    """One is what a smoke test trains."""
    stable = {"name": "adu", "recipe": "stable"}
    made = plan(method=stable, train={"epochs": epochs, "warmup_epochs": 0})
    paper = made.paper(("sketch",))
    assert (paper.train.epochs, paper.train.warmup_epochs) == (epochs, epochs - 1)


def test_the_ends_of_every_range_are_probed(plan):
    gammas = {run.method.gamma for run in plan().probes()}
    assert gammas == {0.1, 30}


def test_a_study_goes_on_when_it_is_compared_with_more(plan):
    def ended(asked):
        return StudyRecord(("sketch",), [], None, {}, complete=True, asked=asked)

    alone, whole = plan(final={"compare": []}), plan()
    assert (alone.n_finals, whole.n_finals) == (4, 10)
    assert not whole.has_ended(ended(alone.asked()))
    assert alone.has_ended(ended(alone.asked()))
    assert "compare" not in whole.asked(), "searches from before there was a choice have ended"


def test_the_help_says_what_can_be_typed(capsys):
    with pytest.raises(SystemExit):
        load_config(SearchConfig, SHORTCUTS, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--method.name {zero_shot,baseline,adu," in text
    assert "(default: adu)" in text
    assert "--forget A,B,..." in text
    assert "--search.trials int, --trials int" in text
    assert "tuple[" not in text


def test_flags_reach_the_fields_they_are_short_for():
    flags = "--manifest m --backbone b --trials 3 --epochs 4 --shots 5 --seed 6 --output o --resume"
    flags += " --tracking-uri t --address a:1 --workers-per-trial 2 --cpus-per-worker 3"
    flags += " --gpus-per-worker 0.5 --forget sketch --forget cartoon+photo"
    demo = next(str(file) for file in SPACES if file.name == "demo.yaml")
    config = load_config(SearchConfig, SHORTCUTS, ["--config", demo, *flags.split()])
    data, resources = config.context.data, config.resources
    assert (data.manifest, config.context.backbone.name, data.shots) == ("m", "b", 5)
    assert (config.search.trials, config.train.epochs, config.search.seed) == (3, 4, 6)
    assert (config.output, config.resume, config.tracking.uri) == ("o", True, "t")
    assert (config.address, resources.workers_per_trial) == ("a:1", 2)
    assert (resources.cpus_per_worker, resources.gpus_per_worker) == (3, 0.5)
    assert config.forget == (("sketch",), ("cartoon", "photo"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sapce": {}}, "unknown field 'sapce'"),
        ({"space": {}}, "space"),
        ({"search": {"trials": 0}}, "search.trials = 0"),
        ({"search": {"objective": "accuracy"}}, "search.objective = 'accuracy'"),
        ({"train": {"epochs": "many"}}, "train.epochs = 'many'"),
        ({"method": {"name": "adu", "gama": 1}}, "unknown field 'method.gama'"),
        ({"final": {"seeds": []}}, "final.seeds"),
        ({"resources": {"workers_per_trial": 0}}, "resources.workers_per_trial = 0"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(changes, says):
    with pytest.raises(UserError) as error:
        parse_config(SearchConfig, {"space": SPACE, **changes}, "file.yaml")
    assert str(error.value).startswith("file.yaml: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
