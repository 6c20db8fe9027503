"""Pre-training, for seconds instead of minutes: a folder that open_clip loads."""

from __future__ import annotations

import json

import torch

from adu.demo.pretrain import contrastive_loss, save_weights, train, write_card, write_config


def test_a_few_steps_give_a_whole_model_folder(tmp_path):
    write_config(tmp_path)
    # 32 cells of 4 pictures are one batch.
    model = train(tmp_path, epochs=1, images_per_cell=4, seed=0)
    save_weights(model, tmp_path)
    card = write_card(tmp_path, {"epochs": 1}, seconds=1.0, images_per_cell=2)
    assert card == json.loads((tmp_path / "card.json").read_text())
    assert 0 <= card["zero_shot_accuracy"]["average"] <= 1


def test_the_loss_is_clips_where_every_caption_fits_one_picture():
    logits_BB = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target_B = torch.arange(5)
    loss = contrastive_loss(logits_BB, torch.eye(5, dtype=torch.float64), torch.ones(5))
    rows = torch.nn.functional.cross_entropy(logits_BB, target_B)
    columns = torch.nn.functional.cross_entropy(logits_BB.T, target_B)
    torch.testing.assert_close(loss, (rows + columns) / 2)
