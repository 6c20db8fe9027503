"""Forget sets of whole domains and of single classes, whatever they are called."""

import numpy as np
import pytest

from adu.data.forget import check_forget_set, forget_domains, forget_mask
from adu.errors import UserError

CLASSES, DOMAINS = ("cat", "dog"), ("photo", "sketch", "art")


def test_a_domain_is_all_its_classes_and_a_pair_is_one():
    forget_CD = forget_mask(["photo", "sketch:dog"], CLASSES, DOMAINS)
    assert forget_CD.tolist() == [[True, False, False], [True, True, False]]
    assert forget_domains(["sketch:dog", "photo"], DOMAINS) == ("photo", "sketch")


def test_colons_in_names_are_part_of_them():
    classes, domains = ("b:c", "c"), ("a", "a:b", "a:c")
    masks = {entry: forget_mask([entry], classes, domains) for entry in ("a:b:c", "a:b:b:c", "a:c")}
    # A domain's own name is the domain; else the shortest domain is the one that is meant.
    assert np.argwhere(masks["a:c"]).tolist() == [[0, 2], [1, 2]]
    assert np.argwhere(masks["a:b:c"]).tolist() == [[0, 0]]
    assert np.argwhere(masks["a:b:b:c"]).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([], "forget set is empty (known domains: photo, sketch, art)"),
        (["oil"], "forget domain 'oil': unknown (known domains: photo, sketch, art)"),
        (["oil:dog"], "forget domain 'oil:dog': unknown"),
        (["photo:car"], "forget 'photo:car': class 'car' is unknown (known classes: cat, dog)"),
        (["photo", "photo"], "names a domain twice"),
        (["photo", "photo:dog"], "forget set photo, photo:dog: names 'photo:dog' twice"),
        (DOMAINS, "is all domains, none is left to retain"),
        (["photo", "art", "sketch:cat", "sketch:dog"], "is all domains"),
    ],
)
def test_what_cannot_be_forgotten_is_one_line(forget, message):
    with pytest.raises(UserError) as told:
        check_forget_set(forget, CLASSES, DOMAINS)
    assert message in str(told.value)


def test_all_but_one_class_of_one_domain_can_be_forgotten():
    check_forget_set(["photo", "art", "sketch:cat"], CLASSES, DOMAINS)
