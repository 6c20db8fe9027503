"""CLIPFit (Li et al., "Vision-Language Model Fine-Tuning via Simple Parameter-Efficient
Modification", EMNLP 2024).

Tunes the biases of the text tower's second feed-forward layers and the image tower's LayerNorms,
and nothing new. Two regularisers keep it near the pre-trained model: the text features' cosine
distance to the frozen ones, and the squared change of the LayerNorms. Trained here with
L_memorize + L_forget in the place of the cross-entropy.

Tensor names carry their shape: B images, C classes, T tokens, E feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.errors import UserError
from adu.methods.base import Output, Task
from adu.methods.tuned import IMAGE_TOWER, TunedClip
from adu.models.backbone import Backbone


class ClipFitConfig(StrictModel):
    """CLIPFit's options."""

    name: Literal["clipfit"] = "clipfit"
    text_weight: float = Field(8.0, ge=0, description="weight of the text features' distance")
    norm_weight: float = Field(1.0, ge=0, description="weight of the LayerNorms' squared change")


class ClipFit(TunedClip):
    """A CLIP with a few of its own parameters set free."""

    def __init__(self, config: ClipFitConfig, backbone: Backbone, task: Task) -> None:
        biases, norms = _text_biases(backbone.clip), _norm_parameters(backbone.clip)
        if not biases or not norms:
            raise UserError(
                f"method clipfit: backbone {backbone.name} has no biases in the feed-forward "
                "layers of an open_clip text tower, or no LayerNorms in its image tower"
            )
        super().__init__(backbone, task, (*biases, *norms))
        self.config, self._biases, self._norms = config, biases, norms
        self._tokens_CT = backbone.caption_tokens(task.classes, task.template)

    def text_features(self) -> Tensor:
        """text_CE with the tuned biases."""
        return self._encode_text(self._tokens_CT)

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The tuned biases."""
        return [self.weight(name) for name in self._biases]

    @torch.no_grad()
    def caption_features(self, classes: Sequence[str], template: str) -> Tensor:
        """text_CE of other captions, with the tuned biases."""
        return self._encode_text(self.backbone.caption_tokens(classes, template))

    def losses(self, output: Output, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """L_memorize + L_forget + text_weight L_text + norm_weight L_norm."""
        terms = super().losses(output, class_B, domain_B)
        frozen = dict(self.backbone.clip.named_parameters())
        cosine_C = (output.text_CE * self.task.text_CE).sum(dim=-1)
        terms["text"] = (1 - cosine_C).mean()
        changes = [(self.weight(name) - frozen[name]).square().mean() for name in self._norms]
        terms["norm"] = torch.stack(changes).mean()
        terms["total"] = (
            terms["total"]
            + self.config.text_weight * terms["text"]
            + self.config.norm_weight * terms["norm"]
        )
        return terms

    def _encode_text(self, tokens_CT: Tensor) -> Tensor:
        return F.normalize(self.encoded("text", tokens_CT).float(), dim=-1)


def _text_biases(clip: nn.Module) -> list[str]:
    return [
        name
        for name, _ in clip.named_parameters()
        if name.endswith("mlp.c_proj.bias") and not name.startswith(IMAGE_TOWER)
    ]


def _norm_parameters(clip: nn.Module) -> list[str]:
    return [
        f"{module_name}.{name}"
        for module_name, module in clip.named_modules()
        if module_name.startswith(IMAGE_TOWER) and isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]
