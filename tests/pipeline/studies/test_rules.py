"""Early stopping by Tune's rules, one a study."""

from __future__ import annotations

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from adu.errors import UserError
from pipeline.studies.config import StudyConfig
from pipeline.studies.rules import Rules, deciding_epochs, make_rule
from pipeline.studies.study import Study
from tests.pipeline.studies.made_up import EPOCHS, Queue, make_spec, result


class Controller:
    """Stands for Tune's: keeps what it is asked."""

    def __init__(self):
        self.paused = []

    def pause_trial(self, trial, should_checkpoint):
        self.paused.append((trial.trial_id, should_checkpoint))
        trial.status = Trial.PAUSED


@pytest.fixture
def controller():
    return Controller()


@pytest.fixture
def job(tmp_path):
    """A queue over two studies, and the rules that it has."""

    def make(size=8, **config):
        studies = [Study(make_spec(tmp_path, name=name, **config)) for name in ("a", "b")]
        queue = Queue(*studies, size=size)
        rules = Rules(queue)
        for study in studies:
            rules.add(study, make_rule(study.spec.config, EPOCHS))
        return queue, rules

    return make


def begin(queue, rules, controller, trial_id):
    trial = Trial("executor", stub=True, trial_id=trial_id)
    trial.config = queue.suggest(trial_id)
    queue.started(trial_id)
    rules.on_trial_add(controller, trial)
    trial.status = Trial.RUNNING
    return trial


def tell(queue, rules, controller, trial, epoch, h, before=()):
    """An epoch, in Tune's order of calls; returns what the rule says."""
    told = result(epoch, h, before)
    decision = rules.on_trial_result(controller, trial, told)
    if decision == TrialScheduler.STOP:
        rules.on_trial_complete(controller, trial, told)
        queue.on_trial_complete(trial.trial_id, told)
    else:
        queue.on_trial_result(trial.trial_id, told)
    return decision


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_trials_before_a_resumption_are_compared_with_those_after_it(
    tmp_path, controller, scheduler
):
    spec = make_spec(tmp_path, scheduler=scheduler, grace_epochs=1, reduction_factor=2)
    earlier = Queue(Study(spec))
    for number in range(4):
        earlier.run(str(number), [0.5, 0.6, 0.7, 0.8])
    study = Study(spec)
    queue = Queue(study)
    rules = Rules(queue)
    rules.add(study, make_rule(spec.config, EPOCHS))
    trial = begin(queue, rules, controller, "trial")
    assert tell(queue, rules, controller, trial, 2, 0.1) == "STOP"


def test_the_defaults_come_to_their_end_whatever_the_others_do(job, controller):
    queue, rules = job(scheduler="asha", grace_epochs=1, reduction_factor=2, at_once=2)
    defaults, _, other, _ = (begin(queue, rules, controller, str(n)) for n in range(4))
    assert tell(queue, rules, controller, other, 1, 0.9) == "CONTINUE"
    assert tell(queue, rules, controller, defaults, 1, 0.1) == "CONTINUE"


def test_studies_are_not_compared_with_each_other(job, controller):
    queue, rules = job(scheduler="asha", grace_epochs=1, reduction_factor=2)
    trials = [begin(queue, rules, controller, str(n)) for n in range(4)]
    assert [trial.config["run"].study for trial in trials] == ["a", "b", "a", "b"]
    # The second study's are worse than the first one's, all of them.
    values = (0.9, 0.2, 0.8, 0.3)
    decisions = [
        tell(queue, rules, controller, trial, 1, h) for trial, h in zip(trials, values, strict=True)
    ]
    assert decisions == ["CONTINUE", "CONTINUE", "STOP", "CONTINUE"]


def test_a_trial_that_changes_its_executor_is_one_trial_to_its_rule(job, controller):
    queue, rules = job(size=1, scheduler="asha", grace_epochs=1, reduction_factor=2)
    heard = []
    rule = rules._studies["a"].rule
    real = rule.on_trial_result
    rule.on_trial_result = lambda *args: heard.append(args[2]["epoch"]) or real(*args)
    trial = begin(queue, rules, controller, "first")
    tell(queue, rules, controller, trial, 1, 0.5)
    tell(queue, rules, controller, trial, 2, 0.6)
    queue.on_trial_complete("first", None, error=True)
    again = begin(queue, rules, controller, "second")
    assert again.config["run"] == trial.config["run"]
    # The last epoch is told again; an epoch that nobody had heard of is made up for.
    tell(queue, rules, controller, again, 4, 0.7, before=[(1, 0.5), (2, 0.6), (3, 0.65)])
    assert heard == [1, 2, 3, 4]
    assert len(rules._studies["a"].known) == 1


def test_a_rule_may_pause_a_trial_whose_state_is_on_disk_anyway(job, controller):
    queue, rules = job(size=10, scheduler="hyperband", reduction_factor=2)
    # The first three trials of a study are a bracket that runs to its end.
    trial = [begin(queue, rules, controller, str(n)) for n in range(10)][6]
    assert queue.propose("full") is None
    decisions = [tell(queue, rules, controller, trial, epoch, 0.5) for epoch in (1, 2)]
    assert decisions == [TrialScheduler.CONTINUE, TrialScheduler.NOOP]
    assert controller.paused == [("6", False)]
    # Its executor is free for another trial.
    assert queue.propose("10") is not None


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"scheduler": "ashb"}, "search.scheduler 'ashb': unknown (known: asha, hyperband, "),
        ({"scheduler": "ray.tune.schedulers.Nothing"}, "unknown (known: "),
        ({"scheduler": "json.loads"}, "is no subclass of Tune's TrialScheduler"),
        (
            {"scheduler": "ray.tune.schedulers.PopulationBasedTraining"},
            "changes the configurations of running trials",
        ),
        (
            {"scheduler_options": {"bracket": 3}},
            "search.scheduler_options {'bracket': 3}: asha does not take them",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_one_line(config, says):
    with pytest.raises(UserError) as error:
        make_rule(StudyConfig(**config), EPOCHS)
    assert says in str(error.value)


def test_any_rule_of_tunes_by_its_import_path_with_its_options():
    path = "ray.tune.schedulers.MedianStoppingRule"
    rule = make_rule(StudyConfig(scheduler=path, scheduler_options={"hard_stop": False}), EPOCHS)
    assert type(rule).__name__ == "MedianStoppingRule"
    assert rule.metric == "merit"


@pytest.mark.parametrize(
    ("config", "epochs"),
    [
        ({"scheduler": "asha", "grace_epochs": 2, "reduction_factor": 4}, (2, 8)),
        ({"scheduler": "asha", "grace_epochs": 1, "reduction_factor": 1.5}, (1, 2, 3, 4, 6, 8)),
        ({"scheduler": "asha", "scheduler_options": {"grace_period": 4}}, (4,)),
        ({"scheduler": "median"}, (1, 2, 3, 4, 5, 6, 7, 8, 9)),
        ({"scheduler": "none"}, ()),
    ],
)
def test_where_a_rule_decides_is_known_beforehand(config, epochs):
    assert deciding_epochs(StudyConfig(**config), 9) == epochs
