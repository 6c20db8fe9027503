"""The frozen CLIP that everything starts from; `adu.models.openclip` loads it.

One option names it: ``demo``; an open_clip architecture with its weights
(``ViT-B-16:openai``, ``ViT-B-16:/weights.safetensors``, ``ViT-B-16:s3://bucket/weights.pt``); a
repository of the Hugging Face hub (``hf-hub:timm/ViT-B-16-SigLIP2``); or a folder or URL that holds
``open_clip_config.json`` and ``open_clip_model.safetensors``. Images are prepared as the folder or
the tag says; a file of weights says neither that nor its activation: see
`adu.models.sources.find_weights`.

Tensor names carry their shape: C classes, T tokens, E feature width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from adu.config import StrictModel
from adu.data.preprocess import ImageTransform
from adu.errors import UserError
from adu.models.tower import Tower

DEFAULT_TEMPLATE = "a photo of a {class}."


class BackboneConfig(StrictModel):
    """The pre-trained model and the words that it is asked with."""

    name: str = Field(
        "demo",
        description="'demo', ARCH:WEIGHTS, hf-hub:REPOSITORY, or an open_clip model folder or URL",
    )
    template: str = Field(
        DEFAULT_TEMPLATE, description="caption of a class, with {class} for its name"
    )

    @field_validator("template")
    @classmethod
    def _names_the_class(cls, template: str) -> str:
        if "{class}" not in template:
            raise ValueError("must contain {class}")
        return template


@dataclass
class Backbone:
    """A frozen CLIP-like model.

    Attributes:
        name: As the user wrote it.
        clip: The open_clip model, in evaluation mode, without gradients.
        tower: Its image tower, opened for prompts.
        tokenizer: Captions to token numbers.
        transform: How images are prepared for it.
    """

    name: str
    clip: Any
    tower: Tower
    tokenizer: Any
    transform: ImageTransform

    @cached_property
    def fingerprint(self) -> str:
        """Tells it from models with other weights, or that prepare images in another way."""
        # Without regard to the parameters' names, which are open_clip's to change.
        weights = sorted(_digest(parameter) for parameter in self.clip.parameters())
        t = self.transform
        how = (t.image_size, *t.mean, *t.std, t.interpolation, t.resize_mode, t.fill)
        text = " ".join([*weights, *map(str, how)])
        return hashlib.sha256(text.encode()).hexdigest()

    @torch.no_grad()
    def text_features(self, classes: Sequence[str], template: str) -> Tensor:
        """Unit-length text_CE of the classes' captions (underscores read as spaces).

        Raises:
            UserError: If two classes have the same caption.
        """
        tokens_CT = self.caption_tokens(classes, template)
        return F.normalize(self.clip.encode_text(tokens_CT).float(), dim=-1)

    def caption_tokens(self, classes: Sequence[str], template: str) -> Tensor:
        """tokens_CT of the classes' captions, on the model's device.

        Raises:
            UserError: If two classes have the same, so that the model cannot tell them apart.
        """
        captions = [template.replace("{class}", name.replace("_", " ")) for name in classes]
        tokens_CT: Tensor = self.tokenizer(captions)
        first: dict[tuple[int, ...], int] = {}
        for i, tokens_T in enumerate(tokens_CT.tolist()):
            other = first.setdefault(tuple(tokens_T), i)
            if other != i:
                raise UserError(
                    f"classes '{classes[other]}' and '{classes[i]}': have the same caption for "
                    f"the model, '{captions[i]}'"
                )
        return tokens_CT.to(next(self.clip.parameters()).device)


def _digest(weight: Tensor) -> str:
    values = weight.detach().float().cpu().contiguous()
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    digest.update(values.reshape(-1).numpy().data)
    return digest.hexdigest()
