"""Approximate Domain Unlearning (Kawamura et al., NeurIPS 2025, arXiv 2510.08132).

Baseline plus two things: a domain disentangling loss (domain classification and MMD) that pulls
the domains' features apart, and prompts made for each image (InstaPG).

Tensor names carry their shape: B images, T tokens, P prompt tokens, W token width.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from adu.backbone import Backbone
from adu.errors import UserError
from adu.losses import Estimator, Kernel, domain_loss, mmd_squared
from adu.methods.base import Output, Task
from adu.methods.baseline import Baseline, PromptConfig
from adu.prompts import InstaPG


class AduConfig(PromptConfig):
    """ADU's options, with the paper's defaults where the paper gives any."""

    name: Literal["adu"] = "adu"
    gamma: float = Field(30.0, ge=0, description="weight of the domain classification loss")
    lambda_: float = Field(10.0, ge=0, alias="lambda", description="weight of MMD^2 (maximised)")
    mmd_estimator: Estimator = Field("biased", description="how MMD^2 is estimated")
    mmd_kernel: Kernel = Field("gaussian", description="kernel of MMD^2")
    mmd_bandwidth: float = Field(
        1.0, gt=0, description="factor on the kernel's width (the linear one has none)"
    )
    instapg: bool = Field(True, description="whether prompts are made for each image")
    instapg_layer: int | None = Field(
        None, ge=1, description="block where InstaPG stands, from 0; unset: the middle one"
    )
    instapg_heads: int | None = Field(None, ge=1, description="unset: as many as the tower's")
    instapg_residual: bool = Field(
        True, description="whether the image's prompts are added to its block's, or replace them"
    )
    instapg_mode: Literal["carry", "add"] = Field(
        "carry",
        description="blocks after InstaPG carry the image's prompts on, or add them to their own",
    )

    def instapg_layer_in(self, n_blocks: int) -> int:
        """The number of InstaPG's block, which must have prompts of its own.

        Raises:
            UserError: If that block is not a prompted one.
        """
        depth = self.depth_in(n_blocks)
        layer = min(n_blocks // 2, depth - 1) if self.instapg_layer is None else self.instapg_layer
        if not 1 <= layer < depth:
            raise UserError(
                f"method.instapg_layer = {layer}: must be one of the prompted blocks after the "
                f"first, 1 to {depth - 1}"
            )
        return layer


class Adu(Baseline):
    """Deep prompts, InstaPG and the domain disentangling loss."""

    def __init__(self, config: AduConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(config, backbone, task)
        self.config = config
        tower = backbone.tower
        if config.instapg and config.n_ctx:
            self.layer = config.instapg_layer_in(tower.n_blocks)
            self.instapg = InstaPG(tower.width, config.instapg_heads or tower.heads)
            if config.instapg_mode == "carry":
                self.prompts.keep_first(self.layer + 1)
        else:
            self.layer = tower.n_blocks
        # Trained together, needed by nobody at inference (paper, section 4.1).
        self.domain_head = nn.Linear(task.text_CE.shape[1], len(task.domains))

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Runs the tower with learned prompts and, from InstaPG on, the images' own."""
        n_images = len(images_BCHW)
        instance_BPW: Tensor | None = None

        def prompts_at(block: int, image_BTW: Tensor) -> Tensor:
            nonlocal instance_BPW
            learned_BPW = self.prompts.at(block, n_images)
            if block == self.layer:
                patches_BNW = image_BTW[:, self.backbone.tower.n_prefix :]
                instance_BPW = self.instapg(learned_BPW, patches_BNW)
                if not self.config.instapg_residual:
                    return instance_BPW
            return learned_BPW if instance_BPW is None else learned_BPW + instance_BPW

        return self.prompted(images_BCHW, prompts_at)

    def losses(self, output: Output, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """L_total = L_memorize + L_forget + gamma L_CE - lambda MMD^2 (paper, section 4)."""
        terms = super().losses(output, class_B, domain_B)
        terms["domain_ce"] = domain_loss(self.domain_head(output.features_BE), domain_B)
        terms["mmd"] = mmd_squared(
            output.features_BE,
            domain_B,
            len(self.task.domains),
            self.config.mmd_estimator,
            self.config.mmd_kernel,
            self.config.mmd_bandwidth,
        )
        terms["total"] = (
            terms["total"]
            + self.config.gamma * terms["domain_ce"]
            - self.config.lambda_ * terms["mmd"]
        )
        return terms

    def deployed(self) -> dict[str, nn.Parameter]:
        """All that is learned but the domain head."""
        learned = self.trainable()
        return {name: p for name, p in learned.items() if not name.startswith("domain_head.")}
