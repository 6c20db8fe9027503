"""Early stopping: each study has a rule of Ray Tune's of its own, and one scheduler asks it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from adu.errors import UserError
from pipeline.executors.run import TRIAL, Event, Run
from pipeline.executors.session import epoch_report
from pipeline.studies.config import StudyConfig
from pipeline.studies.imported import imported
from pipeline.studies.queue import RunQueue
from pipeline.studies.study import DEFAULTS, Study

METRIC = "merit"

RULES = {
    "asha": AsyncHyperBandScheduler,
    "hyperband": HyperBandScheduler,
    "median": MedianStoppingRule,
    "none": FIFOScheduler,
}

CONTINUE, STOP, PAUSE, NOOP = (
    TrialScheduler.CONTINUE,
    TrialScheduler.STOP,
    TrialScheduler.PAUSE,
    TrialScheduler.NOOP,
)


def make_rule(config: StudyConfig, epochs: int) -> Any:
    """Makes the rule that `config` names.

    Args:
        config: How a study searches.
        epochs: Of a whole trial.

    Raises:
        UserError: If there is no such rule, or it does not take the options.
    """
    name = config.scheduler
    rule_class: Any = RULES.get(name) or _imported(name)
    grace_epochs = min(config.grace_epochs, epochs)
    # By epoch, not by Tune's own count of results, which would start again with another executor.
    usual: dict[str, Any] = {
        "time_attr": "epoch",
        "metric": METRIC,
        "mode": "max",
        "max_t": epochs,
        "grace_period": grace_epochs,
        "reduction_factor": config.reduction_factor,
        # The median rule would pause trials while there are few others to compare them with.
        "min_time_slice": epochs,
    }
    taken = inspect.signature(rule_class.__init__).parameters
    options = {option: value for option, value in usual.items() if option in taken}
    try:
        return rule_class(**options | config.scheduler_options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"search.scheduler_options {config.scheduler_options}: {name} does not take them: "
            f"{' '.join(str(error).split())}"
        ) from error


def deciding_epochs(config: StudyConfig, epochs: int) -> tuple[int, ...]:
    """The epochs after which a study's rule may stop a trial.

    Args:
        config: How a study searches.
        epochs: Of a whole trial.
    """
    rule = make_rule(config, epochs)
    if type(rule) is FIFOScheduler:
        return ()
    if not isinstance(rule, AsyncHyperBandScheduler):
        return tuple(range(1, epochs + 1))
    first, factor = _rungs(config)
    rungs, rung = set(), first
    while rung <= epochs:
        # Looked at in the first epoch that is not before it.
        rungs.add(math.ceil(rung))
        rung *= factor
    return tuple(sorted(rungs))


def likely_epochs(config: StudyConfig, epochs: int) -> float:
    """The epochs of a study's trials on average, if it does not matter which is better.

    The k-th trial at a rung of ASHA's goes on if it is among the best 1/factor of k, the first ones
    if they are the best so far. Of other rules it is not known.

    Args:
        config: How a study searches.
        epochs: Of a whole trial.
    """
    if not isinstance(make_rule(config, epochs), AsyncHyperBandScheduler):
        return float(epochs)
    _, factor = _rungs(config)
    n_left, before, total = config.trials, 0, 0
    for rung in (*deciding_epochs(config, epochs), epochs):
        total += n_left * (rung - before)
        n_left = round(sum(max(1 / k, 1 / factor) for k in range(1, n_left + 1)))
        before = rung
    return total / config.trials


def _rungs(config: StudyConfig) -> tuple[float, float]:
    """ASHA's first rung, in epochs, and the factor between them."""
    usual = {"grace_period": config.grace_epochs, "reduction_factor": config.reduction_factor}
    options = {**usual, **config.scheduler_options}
    return float(options["grace_period"]), float(options["reduction_factor"])


class Rules(TrialScheduler):
    """Tune's scheduler: hands what happens to a trial to the rule of its study.

    A rule knows a trial by its run, and hears each of its epochs once, also if the trial has
    changed its executor in between or goes on from an earlier session.

    Args:
        queue: Of the job; is told which trials a rule has wait for others.
    """

    def __init__(self, queue: RunQueue) -> None:
        super().__init__()
        self._queue = queue
        self._studies: dict[str, _Study] = {}

    def add(self, study: Study, rule: Any) -> None:
        """Sets a study's rule, and shows it the trials that have ended in an earlier session."""
        self._studies[study.name] = _Study(rule, study)
        if isinstance(rule, HyperBandScheduler):
            # It compares those that run side by side.
            return
        nobody = _View(None, [])
        for number, curve in enumerate(study.curves()):
            earlier = _Known(f"earlier-{number}")
            rule.on_trial_add(nobody, earlier)
            results = [{"epoch": epoch, METRIC: merit} for epoch, merit in sorted(curve.items())]
            for result in results:
                if rule.on_trial_result(nobody, earlier, result) == STOP:
                    break
            if results:
                rule.on_trial_complete(nobody, earlier, results[-1])

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial is about to start."""
        if study := self._study(trial):
            study.add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        study, event = self._study(trial), result["event"]
        if study is None or event.kind != "epoch":
            return CONTINUE
        decision = study.result(tune_controller, trial, event, result)
        if decision != PAUSE:
            return decision
        # Its state is on disk already: nothing is to be saved.
        self._queue.keep_paused(trial.trial_id, event)
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return NOOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: Any) -> None:
        """A trial has ended, or is stopped."""
        if study := self._study(trial):
            known = study.known[_run(trial).key]
            study.rule.on_trial_complete(study.view(tune_controller), known, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial has lost its executor: it comes again, and its rule need not know."""

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial that waits is stopped."""
        if study := self._study(trial):
            study.rule.on_trial_remove(study.view(tune_controller), study.known[_run(trial).key])

    def choose_trial_to_run(self, tune_controller: Any, **_: Any) -> Trial | None:
        """A trial that was paused and is to go on; the others Tune starts in their order."""
        for study in self._studies.values():
            if study.paused:
                chosen = study.rule.choose_trial_to_run(study.view(tune_controller))
                if chosen is not None and chosen.trial.status == Trial.PAUSED:
                    study.paused.discard(chosen.trial_id)
                    self._queue.resume(chosen.trial.trial_id)
                    return chosen.trial
        return None

    def debug_string(self) -> str:
        """Nothing: Tune prints nothing."""
        return ""

    def save(self, checkpoint_path: str) -> None:
        """Writes nothing: rules are shown the trials that have ended again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return FIFOScheduler, ()

    def _study(self, trial: Trial) -> _Study | None:
        run = _run(trial)
        return self._studies.get(run.study) if run.stage == TRIAL else None


class _Known:
    """A trial as its rule knows it, whatever Tune's trial that runs it now."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.trial: Any = None
        self.epoch = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trial, name)


class _Study:
    """A study's rule, and the trials that it knows."""

    def __init__(self, rule: Any, study: Study) -> None:
        # A `TrialScheduler`, which is given `_Known` trials and a `_View` of Tune's controller.
        self.rule = rule
        self._study = study
        self.known: dict[str, _Known] = {}
        self.paused: set[str] = set()

    def view(self, controller: Any) -> _View:
        return _View(controller, list(self.known.values()))

    def add(self, controller: Any, trial: Trial) -> None:
        key = _run(trial).key
        is_new = key not in self.known
        known = self.known.setdefault(key, _Known(key))
        known.trial = trial
        if is_new:
            self.rule.on_trial_add(self.view(controller), known)

    def result(self, controller: Any, trial: Trial, event: Event, result: Mapping[str, Any]) -> str:
        run = _run(trial)
        known, decision = self.known[run.key], CONTINUE
        assert event.epoch is not None
        for epoch in (*event.before, event.epoch):
            if epoch["epoch"] <= known.epoch:
                continue
            known.epoch = epoch["epoch"]
            # Its goal may have been waiting for zero-shot when the rule was set.
            merit = self._study.goal.between(epoch_report(epoch).val)
            told = {**result, "epoch": known.epoch, METRIC: merit}
            decision = self.rule.on_trial_result(self.view(controller), known, told)
            if decision == STOP and run.number == DEFAULTS:
                # What all others are compared with comes to its end.
                decision = CONTINUE
            if decision != CONTINUE:
                break
        if decision == PAUSE:
            self.paused.add(known.trial_id)
        return decision


class _View:
    """Tune's controller as a rule sees it: with the trials of its study alone."""

    def __init__(self, controller: Any, known: Sequence[_Known]) -> None:
        self._controller = controller
        self._known = known

    def get_trials(self) -> list[Any]:
        """All trials of the study."""
        return list(self._known)

    def get_live_trials(self) -> set[Any]:
        """Those that have not ended."""
        return {known for known in self._known if not known.trial.is_finished()}

    def stop_trial(self, known: _Known) -> None:
        """Stops one that is paused."""
        self._controller.stop_trial(known.trial)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


def _run(trial: Trial) -> Run:
    run: Run = trial.config["run"]
    return run


def _imported(name: str) -> Any:
    known = (
        f"known: {', '.join(RULES)}, or the import path of a scheduler of Ray Tune's, such as "
        "ray.tune.schedulers.AsyncHyperBandScheduler"
    )
    found = imported(name, "search.scheduler", known)
    if not (inspect.isclass(found) and issubclass(found, TrialScheduler)):
        raise UserError(f"search.scheduler '{name}': is no subclass of Tune's TrialScheduler")
    if issubclass(found, PopulationBasedTraining):
        raise UserError(
            f"search.scheduler '{name}': changes the configurations of running trials, which a "
            "study would not know; must be one that stops or pauses them"
        )
    return found
