"""How images are prepared for a model, out of open_clip's own description of it."""

from __future__ import annotations

from typing import Any

import open_clip

from adu.data.preprocess import ImageTransform
from adu.errors import UserError


def image_transform(name: str, clip: Any) -> ImageTransform:
    """How images are prepared for a model, out of open_clip's own description.

    Raises:
        UserError: If that asks for what is not done here.
    """
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    what = f"backbone '{name}': preprocess_cfg"
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(f"{what}: size = {height} x {width} (allowed: squares)")
    # timm's towers have a size of their own, and know nothing of the folder's.
    taken = getattr(
        getattr(getattr(clip.visual, "trunk", None), "patch_embed", None), "img_size", None
    )
    if taken is not None and tuple(taken) != (height, width):
        raise UserError(
            f"backbone '{name}': image_size = {height}: its image tower takes "
            f"{taken[0]} x {taken[1]}"
        )
    # open_clip takes 'random', which is for training, as bicubic.
    asked = preprocess["interpolation"]
    interpolation: Any = "bicubic" if asked == "random" else asked
    for key, value, allowed in (
        ("interpolation", interpolation, ("bicubic", "bilinear")),
        ("resize_mode", preprocess["resize_mode"], ("shortest", "longest", "squash")),
    ):
        if value not in allowed:
            raise UserError(f"{what}: {key} = {value!r} (allowed: {', '.join(allowed)})")
    return ImageTransform(
        image_size=height,
        mean=_of_channels(preprocess["mean"], f"{what}: mean"),
        std=_of_channels(preprocess["std"], f"{what}: std"),
        interpolation=interpolation,
        resize_mode=preprocess["resize_mode"],
        fill=preprocess["fill_color"],
    )


def _of_channels(value: Any, what: str) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise UserError(f"{what} = {value!r} (allowed: a number, or one for each of 3 channels)")
    return values
