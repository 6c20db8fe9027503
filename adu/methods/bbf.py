"""BBF, black-box forgetting (Kuwana et al., "Black-Box Forgetting", NeurIPS 2024).

A text context like CoOp's, found without gradients by CMA-ES, so that it also fits a model that
only answers. To keep the search small, the context is made from few latent numbers (latent context
sharing): each token from numbers of its own and numbers that all tokens share, by a fixed random
map. Trained here with L_memorize + L_forget.

Tensor names carry their shape: B images, K context tokens, V text token width, S shared and U own
latent numbers, L = S + U.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.methods.base import EvolutionOptions, Method, Task
from adu.models.backbone import Backbone
from adu.models.text import PromptedText

# The map is the same for every run, so that checkpoints need no copy of it.
MAP_SEED = 0


class BbfConfig(StrictModel):
    """BBF's options; its paper fits the sizes to each data set, these are ours."""

    name: Literal["bbf"] = "bbf"
    n_ctx: int = Field(4, ge=1, le=64, description="context tokens before the class name")
    n_shared: int = Field(20, ge=1, le=1000, description="latent numbers that all tokens share")
    n_own: int = Field(5, ge=1, le=1000, description="latent numbers of each token by itself")
    init: str = Field("a photo of a", description="words whose embeddings the search starts from")
    sigma: float = Field(1.0, gt=0, description="first step size of CMA-ES")
    population: int = Field(20, ge=3, le=1000, description="candidates that a batch is tried with")


class Bbf(Method):
    """A text context made from latent numbers."""

    def __init__(self, config: BbfConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.captions = PromptedText(backbone, task.classes, config.n_ctx)
        self.shared_S = nn.Parameter(torch.zeros(config.n_shared))
        self.own_KU = nn.Parameter(torch.zeros(config.n_ctx, config.n_own))
        self.evolution = EvolutionOptions(config.sigma, config.population)
        device = task.text_CE.device
        self._base_KV = torch.zeros(config.n_ctx, self.captions.width, device=device)
        words_KV = self.captions.words(backbone, config.init)[: config.n_ctx]
        self._base_KV[: len(words_KV)] = words_KV
        # A latent number of 1 moves a token by about as much as word embeddings are long.
        n_latent = config.n_shared + config.n_own
        std = self.captions.embedding_std / n_latent**0.5
        generator = torch.Generator().manual_seed(MAP_SEED)
        map_LV = torch.randn(n_latent, self.captions.width, generator=generator) * std
        self._map_LV = map_LV.to(device)

    def context(self) -> Tensor:
        """The context_KV that the latent numbers make."""
        shared_KS = self.shared_S.expand(len(self.own_KU), -1)
        return self._base_KV + torch.cat([shared_KS, self.own_KU], dim=1) @ self._map_LV

    def text_features(self) -> Tensor:
        """text_CE with the context."""
        return self.captions.features(self.context())

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """The latent numbers."""
        return self.shared_S, self.own_KU

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's own features_BE."""
        return self.backbone.clip.encode_image(images_BCHW)

    def open_clip_weights(self) -> dict[str, Tensor]:
        """None of them has changed."""
        return {}
