"""What every method is: a tuned CLIP that knows the loss that tunes it.

Tensor names carry their shape: B images, C classes, D domains, E feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adu.data.forget import forget_mask
from adu.methods.losses import ForgetLoss, forget_loss, memorize_loss
from adu.models.backbone import DEFAULT_TEMPLATE, Backbone


@dataclass(frozen=True)
class Task:
    """What is to be unlearned.

    Attributes:
        classes: Class names, in the order of their numbers.
        domains: Domain names, in the order of their numbers.
        forget: What is to be forgotten: domains, or ``domain:class``; all else is retained.
        text_CE: Unit-length text features of the classes.
        template: The caption that they are of.
    """

    classes: tuple[str, ...]
    domains: tuple[str, ...]
    forget: tuple[str, ...]
    text_CE: Tensor
    template: str = DEFAULT_TEMPLATE

    def retain_mask(self, class_B: Tensor, domain_B: Tensor) -> Tensor:
        """True where an image is to be retained."""
        forget_CD = torch.from_numpy(forget_mask(self.forget, self.classes, self.domains))
        return ~forget_CD.to(domain_B.device)[class_B, domain_B]


@dataclass(frozen=True)
class Output:
    """What a method says of a batch.

    Attributes:
        logits_BC: Class scores.
        features_BE: The unit-length features that they come from.
        text_CE: What these are compared with.
        taught: The same, as a teacher gives it of the same images; None where there is none.
    """

    logits_BC: Tensor
    features_BE: Tensor
    text_CE: Tensor
    taught: Output | None = None


@dataclass(frozen=True)
class EvolutionOptions:
    """How a method is trained without gradients.

    Attributes:
        sigma: First step size of CMA-ES.
        population: Candidates in a generation.
    """

    sigma: float
    population: int


@dataclass(frozen=True)
class StepSize:
    """How a parameter is trained that does not follow the trainer's learning rate.

    Attributes:
        lr: Its learning rate, neither scheduled nor with weight decay.
        momentum: Its momentum.
    """

    lr: float
    momentum: float


class Method(nn.Module, ABC):
    """A CLIP with something learnable in it.

    Only parameters with ``requires_grad`` are trained, and of these `deployed` ones saved and
    loaded; the backbone has none.

    Attributes:
        full_batch_steps: Set where training runs on the untouched model's features of all
            images at once, without augmentation: the steps of a whole run; 0 where `prepare` does
            it all. That is called before. What is learned may then change `class_logits` alone.
        any_classes: Whether what is learned holds for classes that it was not learned on.
        evolution: Set where what is learned is found by CMA-ES; it may then change
            `class_logits` alone.
        forget_kind: Which L_forget it is trained with.
        memorize_weight: Weight of L_memorize.
        forget_weight: Weight of L_forget.
    """

    full_batch_steps: int | None = None
    any_classes = True
    evolution: EvolutionOptions | None = None
    forget_kind: ForgetLoss = "uniform"
    memorize_weight: float = 1.0
    forget_weight: float = 1.0

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__()
        self.task = task
        # Kept out of the module tree: the backbone is shared by all methods of a process.
        self._backbone = (backbone,)
        self._held_text: tuple[list[Tensor], Tensor] | None = None

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._backbone[0]

    @abstractmethod
    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Returns features_BE, of any length."""

    def text_features(self) -> Tensor:
        """Unit-length text_CE that images are compared with."""
        return self.task.text_CE

    def text_parameters(self) -> Iterable[nn.Parameter]:
        """What `text_features` depends on; nothing where the text side is frozen."""
        return ()

    def caption_features(self, classes: Sequence[str], template: str) -> Tensor:
        """Unit-length text_CE of captions in plain words, without any learned context."""
        return self.backbone.text_features(classes, template)

    def class_logits(self, features_BE: Tensor, text_CE: Tensor | None = None) -> Tensor:
        """Scores unit-length image features by their similarity to the class captions.

        Args:
            features_BE: The image features.
            text_CE: What to compare them with, if it is not `text_features`.
        """
        clip = self.backbone.clip
        text_CE = self.text_features() if text_CE is None else text_CE
        logits_BC = clip.logit_scale.exp() * features_BE @ text_CE.T
        if getattr(clip, "logit_bias", None) is not None:
            logits_BC = logits_BC + clip.logit_bias
        return logits_BC

    def forward(self, images_BCHW: Tensor) -> Output:
        """Classifies images; of none, which is a worker's share of a small batch, too."""
        features_BE = self.unit_features(images_BCHW)
        text_CE = self.text_features() if torch.is_grad_enabled() else self._text_once()
        # A similarity times logit_scale, 100 in CLIP, is off by up to 0.25 in bf16.
        with torch.autocast(features_BE.device.type, enabled=False):
            logits_BC = self.class_logits(features_BE, text_CE)
        return Output(logits_BC, features_BE, text_CE)

    def unit_features(self, images_BCHW: Tensor) -> Tensor:
        """Unit-length features_BE of images, float32."""
        if not len(images_BCHW):
            # Not every tower takes an empty batch. A gradient must still find its way back here.
            width = self.task.text_CE.shape[1]
            return torch.zeros(0, width, device=images_BCHW.device, requires_grad=True)
        return F.normalize(self.image_features(images_BCHW).float(), dim=-1)

    def scored(self, features_BE: Tensor) -> Output:
        """Classifies unit-length image features."""
        text_CE = self.text_features()
        return Output(self.class_logits(features_BE, text_CE), features_BE, text_CE)

    def _text_once(self) -> Tensor:
        """`text_features`, computed anew only if what it depends on has changed since."""
        now = [parameter.detach() for parameter in self.text_parameters()]
        if self._held_text is not None:
            before, text_CE = self._held_text
            if all(torch.equal(a, b) for a, b in zip(before, now, strict=True)):
                return text_CE
        self._held_text = [parameter.clone() for parameter in now], self.text_features()
        return self._held_text[1]

    def open_clip_weights(self) -> dict[str, Tensor] | None:
        """The weights in which this is another open_clip model than the backbone, by name.

        Returns:
            None where image features are none that such a model gives.
        """
        return None

    def prepare(self, features_NE: Tensor, class_N: Tensor, domain_N: Tensor) -> None:
        """Looks at the untouched model's features of all training images before training.

        Only called where `full_batch_steps` is set. All workers are given the same.
        """

    def step_sizes(self) -> dict[str, StepSize]:
        """Of parameters, by name, that have one of their own; the others follow the trainer."""
        return {}

    def before_step(self, step: int) -> None:
        """Called between the backward pass and the optimiser's step, counted from 0."""

    def losses(self, output: Output, class_B: Tensor, domain_B: Tensor) -> dict[str, Tensor]:
        """The loss terms of a global batch, by name; ``total`` is what is minimised."""
        retain_B = self.task.retain_mask(class_B, domain_B)
        memorize = memorize_loss(output.logits_BC, class_B, retain_B)
        forget = forget_loss(output.logits_BC, class_B, retain_B, self.forget_kind)
        total = self.memorize_weight * memorize + self.forget_weight * forget
        return {"total": total, "memorize": memorize, "forget": forget}

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is learned, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def deployed(self) -> dict[str, nn.Parameter]:
        """What of it is needed to classify, by name: what a checkpoint holds."""
        return self.trainable()
