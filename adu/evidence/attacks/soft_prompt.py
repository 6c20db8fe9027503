"""A searched prompt: learned text context that gets the forgotten domain out of the model.

Tensor names carry their shape: N images, C classes, E feature width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adu.errors import UserError
from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.subject import Pictures, Subject, accuracy
from adu.models.text import TextContext


class SoftPrompt(Attack):
    """Learns text context on k shots of the forget domains; image features stay as they are."""

    title: ClassVar[str] = "searched prompt"
    asks: ClassVar[str] = "Is there a caption, in no words, that gets it out?"
    quick: ClassVar[dict[str, Any]] = {"shots": (8,), "steps": 50}

    shots: tuple[int, ...] = Field((4, 16), description="images of each class")
    n_ctx: int = Field(4, ge=1, description="learned tokens before the class name")
    steps: int = Field(100, ge=1, description="on all shots at once")
    lr: float = Field(0.01, gt=0, description="of AdamW")

    def run(self, subject: Subject) -> Figures:
        """See `Attack.run`."""
        material = subject.material
        available, test = material.forgotten(material.pool), subject.forgotten_test
        try:
            found = {
                f"{k} shots": accuracy(
                    subject.logits(test, self.learned(subject, available.first(k))), test
                )
                for k in self.shots
            }
        except UserError as error:  # the text tower takes no context, or has no room for it
            return Figures(untested={self.title: str(error)})
        return Figures(found)

    def learned(self, subject: Subject, shots: Pictures) -> Tensor:
        """text_CE of the context that tells the shots' classes best.

        Raises:
            UserError: If the text tower takes no context, or has no room for it.
        """
        model, material = subject.model, subject.material
        device = material.context.device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(subject.seed)
            context = TextContext(
                model.backbone, material.context.classes, self.n_ctx, "a photo of a"
            )
        context = context.to(device)
        optimizer = torch.optim.AdamW(context.parameters(), lr=self.lr)
        features_NE, class_N = subject.features(shots).to(device), shots.class_N.to(device)
        for _ in range(self.steps):
            optimizer.zero_grad()
            F.cross_entropy(model.class_logits(features_NE, context()), class_N).backward()
            optimizer.step()
        return context().detach()
