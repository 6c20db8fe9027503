"""Distilled: another trained model's answers in the weights of a plain open_clip model.

What most methods learn stands beside a frozen backbone, which is the old model for whoever leaves
it out. Here all weights of the image tower are trained until it gives, by itself, what a teacher
gives of the same images, those of the forget domains among them: its features (Romero et al.,
"FitNets", ICLR 2015) or its predictions (Hinton et al., "Distilling the Knowledge in a Neural
Network", 2015). Labels are not looked at.

Tensor names carry their shape: B images, C classes, E feature width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from adu import storage
from adu.config import StrictModel
from adu.methods.base import Method, Output, Task
from adu.methods.tuned import IMAGE_TOWER, TunedClip
from adu.models.backbone import Backbone


class DistilledConfig(StrictModel):
    """Who is to be imitated."""

    name: Literal["distilled"] = "distilled"
    teacher: str = Field(
        description="its checkpoint, a file or URL; {seed} in it is the seed of the run"
    )
    match: Literal["features", "predictions"] = Field(
        "features",
        description="what of it is imitated; predictions: of a teacher that reads other captions "
        "or scores features in another way than the plain model",
    )

    @field_validator("teacher")
    @classmethod
    def _absolute(cls, teacher: str) -> str:
        # Workers may stand in another folder.
        return storage.local_path(teacher) if storage.is_relative(teacher) else teacher


class Distilled(TunedClip):
    """The image tower, taught by a trained model; nothing stands beside it."""

    def __init__(self, config: DistilledConfig, backbone: Backbone, task: Task) -> None:
        weights = [name for name, _ in backbone.clip.named_parameters()]
        super().__init__(backbone, task, [name for name in weights if name.startswith(IMAGE_TOWER)])
        self.config = config
        # Kept out of the module tree, and of whatever is made of this model.
        self._teacher: tuple[Method, ...] = ()

    def learn_from(self, teacher: Method) -> None:
        """Says who is to be imitated, which training needs and nothing else does."""
        self._teacher = (teacher.eval(),)

    def forward(self, images_BCHW: Tensor) -> Output:
        """Classifies images; in training, the teacher does so, too."""
        output = super().forward(images_BCHW)
        if not (self.training and self._teacher):
            return output
        (teacher,) = self._teacher
        with torch.no_grad():
            return replace(output, taught=teacher(images_BCHW))

    def losses(self, output: Output, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """The squared distance of unit-length features, or the predictions' KL divergence."""
        assert output.taught is not None
        if self.config.match == "features":
            distance_B = (output.features_BE - output.taught.features_BE).square().sum(dim=-1)
            return {"total": distance_B.mean()}
        log_p_BC = output.logits_BC.log_softmax(dim=-1)
        taught_BC = output.taught.logits_BC.log_softmax(dim=-1)
        kl = F.kl_div(log_p_BC, taught_BC, reduction="batchmean", log_target=True)
        return {"total": kl}
