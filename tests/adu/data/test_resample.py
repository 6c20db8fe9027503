"""Crops are resized as Pillow and torchvision do it: one by one, and in batches for a GPU."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from PIL import Image

from adu.data import decoded as data
from adu.data.decoded import ImageSet, ImageTransform, train_batch
from adu.data.resample import resize_batch, resize_together, resize_weights

CPU = torch.device("cpu")
METHODS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SHAPES = [(64, 64), (90, 40), (17, 200), (32, 32), (5, 7), (227, 227), (31, 33)]
MIRRORED = [False, True, False, True, True, False, False]

# In grey levels of 256: rounding after each of the two directions may fall to the other side.
TOLERANCE = 2
# Where an edge overshoots black or white, it shows which direction was cut off at these first.
TOLERANCE_AT_EDGES, SHARE_OF_EDGES = 6, 0.01


def pictures():
    """Noise and edges at every scale: harder to resize than photographs."""
    rng = np.random.default_rng(0)
    for height, width in SHAPES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: height // 2, : width // 2] = (0, 255, 128)
        yield pixels


def parts():
    return [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in pictures()]


@pytest.mark.parametrize("way", [resize_batch, resize_together])
@pytest.mark.parametrize("interpolation", METHODS)
def test_a_batch_matches_pillow(way, interpolation):
    found = way(parts(), MIRRORED, 32, interpolation, CPU)
    assert found.dtype == torch.uint8
    for pixels, is_mirrored, image_CHW in zip(pictures(), MIRRORED, found, strict=True):
        expected = Image.fromarray(pixels).resize((32, 32), METHODS[interpolation])
        if is_mirrored:
            expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        difference = np.abs(np.asarray(expected, int) - image_CHW.permute(1, 2, 0).numpy())
        assert difference.max() <= TOLERANCE_AT_EDGES
        assert (difference > TOLERANCE).mean() <= SHARE_OF_EDGES


def test_weights_are_the_formula():
    (found,) = resize_weights([23], 40, 9, "bicubic", CPU).double()
    scale = 23 / 9
    for out in range(9):
        x = np.abs((np.arange(23) + 0.5 - (out + 0.5) * scale) / scale)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        kernel = np.where(x < 1, near, np.where(x < 2, far, 0))
        assert found[out, :23].numpy() == pytest.approx(kernel / kernel.sum(), abs=1e-5)
        assert not found[out, 23:].any()


def test_a_batch_does_not_depend_on_who_else_is_in_it():
    together = resize_together(parts(), MIRRORED, 32, "bicubic", CPU)
    (alone,) = resize_together(parts()[1:2], MIRRORED[1:2], 32, "bicubic", CPU)
    assert (together[1].int() - alone.int()).abs().max() <= 1


def test_no_images_are_an_empty_batch():
    assert resize_together([], [], 32, "bicubic", CPU).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("way", [resize_batch, resize_together])
def test_augmentation_matches_torchvision(monkeypatch, way):
    monkeypatch.setattr(data, "resize_batch", way)
    sizes, mean, std = [(80, 60), (50, 120), (224, 224)], (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    rng = np.random.default_rng(1)
    images = [rng.integers(60, 196, (*size, 3), dtype=np.uint8) for size in sizes]
    names = [f"id{i}" for i in range(3)]
    transform = ImageTransform(32, mean, std)
    batch = train_batch(
        ImageSet(images, names, [0] * 3, [0] * 3), range(3), transform, seed=4, epoch=2
    )
    for pixels, name, found in zip(images, names, batch, strict=True):
        rng = data._generator(4, 2, name)
        top, left, height, width = data._random_crop(rng, *pixels.shape[:2], transform.crop_scale)
        view = tv.resized_crop(
            Image.fromarray(pixels),
            top,
            left,
            height,
            width,
            [32, 32],
            tv.InterpolationMode.BICUBIC,
        )
        view = tv.hflip(view) if rng.random() < 0.5 else view
        expected = tv.normalize(
            tv.to_dtype(tv.to_image(view), torch.float32, scale=True), mean, std
        )
        assert (found - expected).abs().max() <= (TOLERANCE + 0.01) / 255 / min(std)
