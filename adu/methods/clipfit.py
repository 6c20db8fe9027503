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
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from adu.config import StrictModel
from adu.errors import UserError
from adu.methods.base import Method, Output, Task
from adu.models.backbone import Backbone


class ClipFitConfig(StrictModel):
    """CLIPFit's options."""

    name: Literal["clipfit"] = "clipfit"
    text_weight: float = Field(8.0, ge=0, description="weight of the text features' distance")
    norm_weight: float = Field(1.0, ge=0, description="weight of the LayerNorms' squared change")


class ClipFit(Method):
    """A CLIP with a few of its own parameters set free.

    The backbone is shared and stays as it is: the tuned parameters are copies, put in their places
    for the length of a call.
    """

    def __init__(self, config: ClipFitConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.config = config
        frozen = dict(backbone.clip.named_parameters())
        self._biases = [name for name in frozen if name.endswith("mlp.c_proj.bias")]
        self._biases = [name for name in self._biases if not name.startswith("visual.")]
        self._norms = _norm_parameters(backbone.clip)
        if not self._biases or not self._norms:
            raise UserError(
                f"method clipfit: backbone {backbone.name} has no biases in the feed-forward "
                "layers of an open_clip text tower, or no LayerNorms in its image tower"
            )
        # A parameter's name may hold no dots.
        self.tuned = nn.ParameterDict(
            {_key(name): frozen[name].detach().clone() for name in (*self._biases, *self._norms)}
        )
        self._calls = {what: _Call(backbone.clip, what) for what in ("image", "text")}
        self._tokens_CT = backbone.caption_tokens(task.classes, task.template)

    def text_features(self) -> Tensor:
        """text_CE with the tuned biases."""
        return self._encode_text(self._tokens_CT)

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The tuned biases."""
        return [self.tuned[_key(name)] for name in self._biases]

    @torch.no_grad()
    def caption_features(self, classes: Sequence[str], template: str) -> Tensor:
        """text_CE of other captions, with the tuned biases."""
        return self._encode_text(self.backbone.caption_tokens(classes, template))

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """features_BE with the tuned LayerNorms."""
        return self._run("image", self._norms, images_BCHW)

    def open_clip_weights(self) -> dict[str, Tensor]:
        """The tuned biases and LayerNorms."""
        return {name: self.tuned[_key(name)].detach() for name in (*self._biases, *self._norms)}

    def losses(self, output: Output, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """L_memorize + L_forget + text_weight L_text + norm_weight L_norm."""
        terms = super().losses(output, class_B, domain_B)
        frozen = dict(self.backbone.clip.named_parameters())
        cosine_C = (output.text_CE * self.task.text_CE).sum(dim=-1)
        terms["text"] = (1 - cosine_C).mean()
        changes = [(self.tuned[_key(name)] - frozen[name]).square().mean() for name in self._norms]
        terms["norm"] = torch.stack(changes).mean()
        terms["total"] = (
            terms["total"]
            + self.config.text_weight * terms["text"]
            + self.config.norm_weight * terms["norm"]
        )
        return terms

    def _encode_text(self, tokens_CT: Tensor) -> Tensor:
        return F.normalize(self._run("text", self._biases, tokens_CT).float(), dim=-1)

    def _run(self, what: str, names: list[str], inputs: Tensor) -> Tensor:
        in_place = {f"clip.{name}": self.tuned[_key(name)] for name in names}
        return functional_call(self._calls[what], in_place, inputs)


class _Call(nn.Module):
    """One of CLIP's two towers as a module, which is what `functional_call` takes."""

    def __init__(self, clip: nn.Module, what: str) -> None:
        super().__init__()
        self.clip: Any = clip
        self._what = what

    def forward(self, inputs: Tensor) -> Tensor:
        encode = self.clip.encode_image if self._what == "image" else self.clip.encode_text
        return encode(inputs)


def _norm_parameters(clip: nn.Module) -> list[str]:
    return [
        f"{module_name}.{name}"
        for module_name, module in clip.named_modules()
        if module_name.startswith("visual.") and isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]


def _key(name: str) -> str:
    return name.replace(".", "/")
