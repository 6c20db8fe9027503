"""Approximate Domain Unlearning (Kawamura et al., NeurIPS 2025, arXiv 2510.08132).

Baseline plus two things: a domain disentangling loss (domain classification and MMD) that pulls
the domains' features apart, and prompts made for each image (InstaPG).

Tensor names carry their shape: B images, D domains, T tokens, P prompt tokens, W token width.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from adu.errors import UserError
from adu.methods.base import Output, Task
from adu.methods.baseline import Baseline, PromptConfig
from adu.methods.losses import Estimator, Kernel, domain_loss, mmd_squared
from adu.methods.recipes import RecipeName, recipe_of
from adu.models.backbone import Backbone
from adu.models.prompts import InstaPG


class AduConfig(PromptConfig):
    """ADU's options, with the paper's defaults where the paper gives any.

    A recipe (`adu.methods.recipes`) sets the options that are not given.
    """

    name: Literal["adu"] = "adu"
    recipe: RecipeName | None = Field(
        None,
        description="sets what is not set itself: as in the paper, as in the authors' code, or, "
        "as 'stable', for small models and few epochs",
    )
    gamma: float = Field(30.0, ge=0, description="weight of the domain classification loss")
    lambda_: float = Field(10.0, ge=0, alias="lambda", description="weight of MMD^2 (maximised)")
    mmd_on: Literal["features", "domain_logits"] = Field(
        "features", description="whether MMD^2 is of image features or of the domain head's logits"
    )
    mmd_estimator: Estimator = Field("biased", description="how MMD^2 is estimated")
    mmd_kernel: Kernel = Field("gaussian", description="kernel of MMD^2")
    mmd_bandwidth: float = Field(
        1.0, gt=0, description="factor on the kernel's width (the linear one has none)"
    )
    instapg: bool = Field(True, description="whether prompts are made for each image")
    instapg_layer: int | None = Field(
        None,
        ge=-100,
        description="block where InstaPG stands, from 0; negative: from the last prompted one, -1; "
        "unset: the middle one",
    )
    instapg_heads: int | None = Field(None, ge=1, description="unset: as many as the tower's")
    instapg_feed_forward: bool = Field(
        False, description="whether InstaPG is a whole transformer block, or attention alone"
    )
    instapg_residual: bool = Field(
        True, description="whether the image's prompts are added to its block's, or replace them"
    )
    instapg_mode: Literal["carry", "add"] = Field(
        "carry",
        description="blocks after InstaPG carry the image's prompts on, or add them to their own",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, values: Any) -> Any:
        recipe = recipe_of(values)
        if recipe is None:
            return values
        given = {"lambda" if name == "lambda_" else name for name in values}
        return {**{n: v for n, v in recipe.method.items() if n not in given}, **values}

    def instapg_layer_in(self, n_blocks: int) -> int:
        """The number of InstaPG's block, which must have prompts of its own.

        Raises:
            UserError: If that block is not a prompted one after the first.
        """
        depth = self.depth_in(n_blocks)
        if depth < 2:
            raise UserError(
                f"method.depth = {depth}: InstaPG stands in a prompted block after the first, "
                "so at least 2 (or method.instapg: false)"
            )
        asked = self.instapg_layer
        layer = min(n_blocks // 2, depth - 1) if asked is None else asked
        layer = depth + layer if layer < 0 else layer
        if not 1 <= layer < depth:
            raise UserError(
                f"method.instapg_layer = {asked}: must be one of the prompted blocks after the "
                f"first, 1 to {depth - 1}, or from the last on {1 - depth} to -1"
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
            heads = config.instapg_heads or tower.heads
            self.instapg = InstaPG(tower.width, heads, config.instapg_feed_forward)
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
        domain_logits_BD = self.domain_head(output.features_BE)
        terms["domain_ce"] = domain_loss(domain_logits_BD, domain_B)
        terms["mmd"] = mmd_squared(
            output.features_BE if self.config.mmd_on == "features" else domain_logits_BD,
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
