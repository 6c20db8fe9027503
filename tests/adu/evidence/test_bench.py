"""The bench does nothing twice, and does again what has changed."""

import pytest

from adu.evidence.attacks.asked import Asked
from adu.evidence.attacks.words import Words
from adu.evidence.bench import Contestant, run_battery
from tests.adu.evidence.subjects import tiny_subject
from tests.tiny import tiny_context


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return tiny_subject(tiny_context(tmp_path_factory.mktemp("bench")))


def test_what_is_done_is_not_done_again(subject, tmp_path):
    loaded = []

    def run(identity="a", words=None):
        def load():
            loaded.append(identity)
            return subject

        contestants = [Contestant("baseline", 0, identity, load)]
        attacks = {"asked": Asked(), "words": words or Words()}
        return list(run_battery(contestants, attacks, str(tmp_path)))

    first = run()
    assert [progress.was_there for progress in first] == [False, False]
    assert (first[-1].done, first[-1].total) == (2, 2)
    again = run()
    assert [p.outcome for p in again] == [p.outcome for p in first]
    assert all(progress.was_there for progress in again) and loaded == ["a"]
    assert [p.was_there for p in run(words=Words(templates=("{class}",)))] == [True, False]
    assert [p.was_there for p in run("another model")] == [False, False]


def test_a_battery_that_was_stopped_goes_on(subject, tmp_path):
    contestants = [Contestant("baseline", 0, "a", lambda: subject)]
    battery = run_battery(contestants, {"asked": Asked(), "words": Words()}, str(tmp_path))
    next(battery)
    battery.close()
    rest = run_battery(contestants, {"asked": Asked(), "words": Words()}, str(tmp_path))
    assert [progress.was_there for progress in rest] == [True, False]
