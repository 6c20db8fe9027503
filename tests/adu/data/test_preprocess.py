"""What is evaluated is what is deployed: images are prepared as open_clip does it, to the bit."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageDraw

from adu.context import ContextConfig, load_context
from adu.data import preprocess
from adu.data.decoded import DataConfig, ImageSet, eval_batch
from adu.data.preprocess import ImageTransform, normalised, view
from tests.pipeline.commands import PACS
from tests.tiny import tiny_backbone, tiny_images

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHAPES = [(64, 64), (65, 63), (640, 320), (321, 777), (31, 29), (1500, 41), (41, 1500), (9, 300)]


def lines(width, height, seed=0):
    """Thin black and white lines over noise: what a second resize on the way would blur away."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return with_lines(image)


def with_lines(image):
    draw = ImageDraw.Draw(image)
    for place in range(0, max(image.size), 7):
        draw.line((place, 0, place, image.height), fill=(255, 255, 255))
        draw.line((0, place, image.width, place), fill=(0, 0, 0))
    return image


def open_clips(transform):
    return open_clip.image_transform(
        transform.image_size,
        is_train=False,
        mean=transform.mean,
        std=transform.std,
        resize_mode=transform.resize_mode,
        interpolation=transform.interpolation,
        fill_color=transform.fill,
    )


def seen(image, transform):
    """What evaluation gives the model of one decoded image."""
    return eval_batch(ImageSet([np.asarray(image)], ["x"], [0], [0]), [0], transform)[0]


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_mode_is_open_clips_own_to_the_bit(shape, interpolation, resize_mode):
    transform = ImageTransform(64, MEAN, STD, interpolation, resize_mode, fill=7)
    image = lines(*shape)
    assert torch.equal(seen(image, transform), open_clips(transform)(image))


@pytest.mark.skipif(not PACS.is_dir(), reason="needs ../shared/data/pacs (1,400 PACS images)")
@pytest.mark.parametrize("resize_mode", ["shortest", "squash"])
def test_real_photographs_are_prepared_as_open_clip_does_it(resize_mode):
    transform = ImageTransform(224, MEAN, STD, "bicubic", resize_mode)
    theirs = open_clips(transform)
    files = sorted(PACS.glob("*/*/*"))[::35]
    assert len(files) == 40
    rng = np.random.default_rng(0)
    for file in files:
        image = Image.open(file).convert("RGB")
        # As they are, and as large pictures of any shape with lines on them.
        large = with_lines(image.resize(tuple(rng.integers(100, 1500, 2).tolist())))
        for each in (image, large):
            assert torch.equal(seen(each, transform), theirs(each)), file


def test_what_is_read_for_evaluation_is_never_reduced_first(tmp_path):
    """From the file to the model: a test image of 5 times the model's size, with thin lines."""
    from pipeline.ingest import IngestConfig, ingest

    folder = tiny_images(tmp_path / "images")
    for file in folder.glob("*/*/*.png"):
        lines(203, 157, seed=int(file.stem)).save(file)
    ingest(IngestConfig(source=str(folder), out=str(tmp_path / "manifest"), name="lines"))
    backbone = {"name": str(tiny_backbone(tmp_path / "model"))}
    data = DataConfig(manifest=str(tmp_path / "manifest"), shots=2, val_shots=1)
    context = load_context(ContextConfig(backbone=backbone, data=data), torch.device("cpu"))
    transform = context.backbone.transform
    theirs = open_clips(transform)
    for images in (context.val, context.test, *context.test_images(slice(0, 5)), context.read([3])):
        for i, image_id in enumerate(images.image_ids):
            expected_CHW = theirs(Image.open(folder / image_id))
            assert torch.equal(eval_batch(images, [i], transform)[0], expected_CHW)
    # Training images are kept at twice the model's size, unless somebody wants them whole.
    assert min(context.train.image(0).shape[1:]) == 2 * transform.image_size
    whole = data.model_copy(update={"reduce_large": False})
    context = load_context(ContextConfig(backbone=backbone, data=whole), torch.device("cpu"))
    assert context.train.image(0).shape[1:] == (157, 203)


@pytest.mark.parametrize("shape", [(60_000, 3), (3, 60_000)])
def test_of_a_picture_as_long_as_a_road_only_the_middle_is_resized(monkeypatch, shape):
    made, resize = [], Image.Image.resize

    def watched(image, size, *arguments, **options):
        made.append(size)
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    found = view(Image.new("RGB", shape, (250, 3, 90)), ImageTransform(224, MEAN, STD))
    assert (found == (250, 3, 90)).all()
    assert made == [(224, 224)]


@pytest.mark.parametrize("shape", [(900, 70), (70, 900), (500, 400)])
def test_the_middle_alone_is_the_middle_of_the_whole(monkeypatch, shape):
    transform = ImageTransform(32, MEAN, STD)
    image = lines(9, 9).resize(shape, Image.Resampling.BICUBIC)
    whole = view(image, transform).astype(int)
    monkeypatch.setattr(preprocess, "MOST_SQUARES", 0)
    assert np.abs(view(image, transform) - whole).max() <= 2


def test_normalisation_is_torchvisions_to_the_bit():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    theirs = open_clips(ImageTransform(16, MEAN, STD))
    image = Image.fromarray(levels[0].permute(1, 2, 0).contiguous().numpy())
    assert torch.equal(normalised(levels, ImageTransform(16, MEAN, STD))[0], theirs(image))
