"""The frozen CLIP that everything starts from; `adu.openclip` loads it.

One option names it: ``demo``; an open_clip architecture with its weights
(``ViT-B-16:openai``, ``ViT-B-16:/weights.safetensors``, ``ViT-B-16:s3://bucket/weights.pt``); or a
folder or URL that holds ``open_clip_config.json`` and ``open_clip_model.safetensors``. Weights in a
file with "openai" in its name get the QuickGELU that OpenAI's were trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adu.config import StrictModel
from adu.data import ImageTransform
from adu.tower import Tower

DEFAULT_TEMPLATE = "a photo of a {class}."


class BackboneConfig(StrictModel):
    """The pre-trained model and the words that it is asked with."""

    name: str = Field(
        "demo", description="'demo', ARCH:WEIGHTS of open_clip, or an open_clip model folder or URL"
    )
    template: str = Field(
        DEFAULT_TEMPLATE, description="caption of a class, with {class} for its name"
    )


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

    @torch.no_grad()
    def text_features(self, classes: Sequence[str], template: str) -> Tensor:
        """Unit-length text_CE of the classes' captions (underscores read as spaces)."""
        tokens_CT = self.caption_tokens(classes, template)
        return F.normalize(self.clip.encode_text(tokens_CT).float(), dim=-1)

    def caption_tokens(self, classes: Sequence[str], template: str) -> Tensor:
        """tokens_CT of the classes' captions, on the model's device."""
        captions = [template.replace("{class}", name.replace("_", " ")) for name in classes]
        tokens_CT: Tensor = self.tokenizer(captions)
        return tokens_CT.to(next(self.clip.parameters()).device)
