"""Decoded images and batches of them: decoding, augmentation, preparation, balance."""

import numpy as np
import torch
from PIL import Image

from adu.data.decoded import (
    ImageSet,
    ImageTransform,
    balanced_batches,
    train_batch,
)

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TRANSFORM = ImageTransform(32, MEAN, STD)


def smooth_image(width, height, seed=0):
    """A picture with structure at several scales, as photographs have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def image_set(*shapes):
    images = [smooth_image(w, h, seed) for seed, (w, h) in enumerate(shapes)]
    return ImageSet(images, [f"id{i}" for i in range(len(images))], [0] * len(images), [0] * 2)


def test_augmentation_of_an_image_depends_on_seed_epoch_and_id_alone():
    images = image_set((50, 40), (40, 50), (45, 45))
    together = train_batch(images, [0, 1, 2], TRANSFORM, seed=3, epoch=5)
    alone = train_batch(images, [2], TRANSFORM, seed=3, epoch=5)
    assert torch.equal(together[2], alone[0])
    for seed, epoch in ((4, 5), (3, 6)):
        other = train_batch(images, [2], TRANSFORM, seed=seed, epoch=epoch)
        assert not torch.equal(other[0], alone[0])


def test_crops_cover_the_stated_share_and_half_are_mirrored():
    # A ramp from left to right and top to bottom tells where a crop came from.
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100)[None], np.arange(100)[:, None]
    images = ImageSet([ramp] * 300, [f"id{i}" for i in range(300)], [0] * 300, [0] * 300)
    plain = ImageTransform(32, (0, 0, 0), (1, 1, 1))
    batch = train_batch(images, range(300), plain, seed=0, epoch=0) * 255
    widths = (batch[:, 0, 16, -1] - batch[:, 0, 16, 0]) * 32 / 31
    heights = (batch[:, 1, -1, 16] - batch[:, 1, 0, 16]) * 32 / 31
    areas = (widths.abs() * heights / 1e4).numpy()
    ratios = (widths.abs() / heights).numpy()
    assert 0.05 < areas.min() < 0.15
    assert 0.85 < areas.max() <= 1.1
    assert ratios.min() > 0.65 and ratios.max() < 1.5
    assert 0.4 < (widths < 0).float().mean() < 0.6


def test_a_very_long_image_is_cropped_within_the_allowed_ratio():
    batch = train_batch(image_set((400, 4)), [0], TRANSFORM, seed=0, epoch=0)
    assert batch.shape == (1, 3, 32, 32)


def test_no_indices_give_an_empty_batch():
    assert train_batch(image_set((40, 40)), [], TRANSFORM, seed=0, epoch=0).shape == (0, 3, 32, 32)


def test_batches_hold_every_domain_equally_and_every_image_once():
    domain_N = torch.tensor([0] * 12 + [1] * 12 + [2] * 12)
    batches = balanced_batches(domain_N, 9, seed=0, epoch=0)
    for rows in batches:
        assert torch.bincount(domain_N[rows], minlength=3).tolist() == [3, 3, 3]
    assert sorted(torch.cat(batches).tolist()) == list(range(36))


def test_a_smaller_domain_starts_over():
    domain_N = torch.tensor([0] * 8 + [1] * 3)
    batches = balanced_batches(domain_N, 4, seed=0, epoch=0)
    counts = torch.bincount(torch.cat(batches), minlength=11)
    assert counts[:8].tolist() == [1] * 8
    assert counts[8:].min() >= 2


def test_batches_change_with_the_epoch_and_come_back_with_the_seed():
    domain_N = torch.arange(40) % 2
    first, again, next_one = (
        torch.cat(balanced_batches(domain_N, 8, seed=1, epoch=e)) for e in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, next_one)
