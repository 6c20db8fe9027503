"""The committed tiny CLIP: small, safe to load, and it knows every domain before unlearning."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from adu.demo import WEIGHTS_DIR
from adu.demo.quality import zero_shot_accuracy
from adu.demo.render import DOMAINS
from adu.models.sources import CONFIG_FILE, WEIGHTS_FILE


def test_the_weights_are_small_safetensors():
    file = WEIGHTS_DIR / WEIGHTS_FILE
    assert file.stat().st_size <= 10e6
    with safe_open(file, "pt") as tensors:
        assert len(list(tensors.keys())) > 50


def test_the_image_tower_is_a_vit_of_six_blocks():
    config = json.loads((WEIGHTS_DIR / CONFIG_FILE).read_text())
    assert config["model_cfg"]["vision_cfg"]["layers"] >= 6


def test_there_is_something_to_forget_in_every_domain():
    # A seed that neither pre-training nor its card has seen.
    accuracy = zero_shot_accuracy(WEIGHTS_DIR, images_per_cell=25, seed=99)
    assert accuracy["average"] >= 0.90
    assert min(accuracy[domain] for domain in DOMAINS) >= 0.80


def test_the_card_says_what_was_measured():
    card = json.loads((WEIGHTS_DIR / "card.json").read_text())
    assert card["data"].startswith("synthetic")
    accuracy = zero_shot_accuracy(WEIGHTS_DIR, images_per_cell=10, seed=card["evaluation_seed"])
    for domain in (*DOMAINS, "average"):
        assert accuracy[domain] == pytest.approx(card["zero_shot_accuracy"][domain], abs=0.08)
