"""What a run reports: the distance after its last epoch, if it is asked for."""

import pytest

from adu.evidence import distance as module
from pipeline.executors.run import TRIAL, Run
from pipeline.executors.session import AduTraining, epoch_report
from tests.adu.evidence.subjects import tiny_run
from tests.tiny import tiny_context


@pytest.mark.parametrize("asked", [True, False])
def test_the_distance_is_measured_after_the_last_epoch_alone(tmp_path, monkeypatch, asked):
    measured = []

    def distance(model, run, context):
        measured.append(run)
        return 0.25

    monkeypatch.setattr(module, "distance", distance)
    context, run = tiny_context(tmp_path), tiny_run(epochs=2)
    config = run.model_dump(mode="json", by_alias=True)
    training = AduTraining(Run("sketch", "0", TRIAL, config, {}, "", distance=asked), context, None)
    reports = [epoch_report(values) for values in training.epochs()]
    assert [report.val.distance for report in reports] == [None, 0.25 if asked else None]
    assert measured == ([run] if asked else [])
    assert ("distance" in reports[-1].val.as_dict()) == asked
