"""Null-space removal: a cheap baseline that is computed from a few images, without training.

Of the features, a few directions are projected out: those along which the classes of what is to be
forgotten differ most, measured by how much they differ there in what is to be retained. In the
manner of training-free unlearning by projection (arXiv 2512.14113), for image features.

Tensor names carry their shape: N images, E feature width, R directions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adu.config import StrictModel
from adu.methods.base import Method, Task
from adu.models.backbone import Backbone


class NullSpaceConfig(StrictModel):
    """How much is projected out."""

    name: Literal["null_space"] = "null_space"
    directions: int = Field(4, ge=1, description="directions of the features that are removed")
    ridge: float = Field(
        0.1,
        gt=0,
        description="added to the retained classes' scatter, as a share of its mean over all "
        "directions: the smaller, the more a direction must be of the forgotten alone",
    )


class NullSpace(Method):
    """The frozen model without a few directions of its features."""

    full_batch_steps = 0

    def __init__(self, config: NullSpaceConfig, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.config = config
        width = task.text_CE.shape[1]
        # Orthonormal columns; of zeros, as long as nothing is known.
        self.removed_ER = nn.Parameter(
            torch.zeros(width, min(config.directions, width - 1)), requires_grad=False
        )

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """The backbone's features_BE, of unit length, without what is removed."""
        features_BE = F.normalize(self.backbone.clip.encode_image(images_BCHW), dim=-1)
        features_BE = features_BE.to(self.removed_ER.dtype)
        return features_BE - features_BE @ self.removed_ER @ self.removed_ER.T

    @torch.no_grad()
    def prepare(self, features_NE: Tensor, class_N: Tensor, domain_N: Tensor) -> None:
        """Finds the directions: the largest generalised eigenvectors of both scatters.

        Without images to forget there are none.
        """
        retain_N = self.task.retain_mask(class_N, domain_N)
        if retain_N.all():
            return
        forget_EE = class_scatter(features_NE[~retain_N], class_N[~retain_N])
        retain_EE = class_scatter(features_NE[retain_N], class_N[retain_N])
        width = len(retain_EE)
        ridge = self.config.ridge * retain_EE.trace() / width
        eye_EE = torch.eye(width, dtype=retain_EE.dtype, device=retain_EE.device)
        root_EE = torch.linalg.cholesky(retain_EE + ridge * eye_EE)
        half_EE = torch.linalg.solve_triangular(root_EE, forget_EE, upper=False)
        whitened_EE = torch.linalg.solve_triangular(root_EE, half_EE.T, upper=False)
        largest_ER = torch.linalg.eigh(whitened_EE).eigenvectors[:, -self.removed_ER.shape[1] :]
        directions_ER = torch.linalg.solve_triangular(root_EE.T, largest_ER, upper=True)
        self.removed_ER.copy_(torch.linalg.qr(directions_ER).Q)

    def deployed(self) -> dict[str, nn.Parameter]:
        """The removed directions."""
        return {"removed_ER": self.removed_ER}


def class_scatter(features_NE: Tensor, class_N: Tensor) -> Tensor:
    """Scatter_EE between classes, in float64: of their means around the mean of these."""
    means = [features_NE[class_N == c].double().mean(dim=0) for c in class_N.unique()]
    means_CE = torch.stack(means)
    centred_CE = means_CE - means_CE.mean(dim=0)
    return centred_CE.T @ centred_CE / len(means_CE)
