"""The distance that a search may follow: no test image is seen, and the ends are asked once."""

import pytest

from adu.data.manifest import Manifest
from adu.evidence import distance as module
from adu.evidence.distance import distance
from adu.evidence.verdict import distance_of
from tests.adu.evidence.subjects import FORGET, tiny_run, tiny_subject
from tests.tiny import tiny_context


@pytest.fixture
def context(tmp_path):
    return tiny_context(tmp_path, val_shots=2)


def test_it_sees_no_test_image_and_asks_the_ends_of_the_scale_once(context, monkeypatch):
    asked = []

    def attacked(subject):
        found = attack(subject)
        asked.append((subject.label, found))
        return found

    def refuse(*_):
        raise AssertionError("test images were looked at")

    attack = module._attacked
    monkeypatch.setattr(module, "_attacked", attacked)
    monkeypatch.setattr(Manifest, "test_rows", refuse)
    models = [tiny_subject(context, seed=seed) for seed in (0, 1)]
    found = [distance(subject.model, subject.run, context) for subject in models]
    assert [label for label, _ in asked] == ["untouched", "knows_nothing", "model", "model"]
    ends, last = [*asked[0][1], *asked[1][1]], asked[3][1]
    assert found[1] == distance_of([*ends, *last], "model")
    assert [outcome.attack for outcome in last] == list(module.ATTACKS)
    assert all(0 <= value <= 1 for value in found)


def test_an_attacker_has_the_shots_and_asks_about_validation_images(context):
    material = module.ValidationMaterial(context, context.manifest, FORGET)
    assert material.pool.images.image_ids == context.train.image_ids
    assert material.test.images is context.val
    assert not len(material.fresh) and material.novel is None
    assert not set(material.pool.images.image_ids) & set(context.val.image_ids)
    sides = material.forgotten(material.test), material.kept(material.test)
    assert [len(side) for side in sides] == [2 * 3, 2 * 3 * 2]
    assert tiny_run().forget == FORGET
