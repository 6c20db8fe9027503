"""What else tells whether a domain is forgotten: beyond accuracy and what was trained on.

Tensor names carry their shape: N images, C classes, E feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adu.context import STREAM_BLOCK, Context
from adu.data.decoded import ImageSet, batches_of, eval_batch
from adu.data.forget import forget_mask
from adu.data.manifest import Manifest
from adu.data.reading import stream_views
from adu.evaluation.evaluate import EVAL_BATCH_SIZE, image_features
from adu.evaluation.metrics import Scores, calibration_error, entropy, scores_from_counts
from adu.evidence.linear_probe import DOMAIN_PROBE_C, fit_probe, probe_accuracy
from adu.evidence.subject import rebuilt
from adu.methods import Method, Task
from adu.models.precision import autocast
from adu.training.config import RunConfig


@dataclass(frozen=True)
class Certainty:
    """How sure a model is of its classes on one side.

    Attributes:
        entropy: Mean entropy of the class probabilities, in nats; at most log C.
        calibration_error: Expected calibration error, 15 bins.
    """

    entropy: float
    calibration_error: float


@dataclass(frozen=True)
class Audit:
    """What a model does on a test split, seen from all sides.

    Attributes:
        scores: On the classes and domains that it was trained on, in the words trained with.
        retain: Certainty on the retain domains.
        forget: Certainty on the images to forget.
        domain_accuracy: How often a linear probe on the image features tells the domain; None
            where the manifest has no training images to fit it on.
        by_template: Scores with other captions.
        novel: Scores among the classes that were not trained on; None if there are no test images
            of any on a side, or if the method knows no others.
        unseen: Accuracy on every domain that was not trained on and has test images.
    """

    scores: Scores
    retain: Certainty
    forget: Certainty
    domain_accuracy: float | None
    by_template: dict[str, Scores]
    novel: Scores | None
    unseen: dict[str, float]


@dataclass(frozen=True)
class _Features:
    """Unit-length features of images, with the names of their classes and domains."""

    features_NE: Tensor
    class_N: np.ndarray
    domain_N: np.ndarray

    def to_forget(self, forget: Sequence[str]) -> np.ndarray:
        """True where an image is to be forgotten."""
        classes, class_N = np.unique(self.class_N, return_inverse=True)
        domains, domain_N = np.unique(self.domain_N, return_inverse=True)
        return forget_mask(forget, classes.tolist(), domains.tolist())[class_N, domain_N]

    def only(self, classes: Sequence[str], domains: Sequence[str]) -> _Features:
        mask_N = np.isin(self.class_N, classes) & np.isin(self.domain_N, domains)
        features_NE = self.features_NE[torch.from_numpy(mask_N).to(self.features_NE.device)]
        return _Features(features_NE, self.class_N[mask_N], self.domain_N[mask_N])


@torch.no_grad()
def audit(
    model: Method,
    run: RunConfig,
    context: Context,
    whole: Manifest,
    templates: Sequence[str],
    probe_shots: int,
) -> Audit:
    """Looks at a trained model from all sides; test images are read once.

    Args:
        model: The model.
        run: What trained it.
        context: The backbone, with the classes and domains of the training.
        whole: The manifest with all its classes and domains.
        templates: Captions to try besides the one trained with.
        probe_shots: Images of each domain and class that the domain probe is fitted on, where
            there are as many.
    """
    model.eval()
    with autocast(run.train.precision, context.device):
        everything = _features(model, context, whole)
    known = everything.only(context.classes, context.domains)
    logits_NC = model.class_logits(known.features_NE)
    is_forget_N = known.to_forget(run.forget)
    by_template = {
        template: _scores_in_words(model, known, run, context.classes, template)
        for template in templates
    }
    unseen = {
        domain: _accuracy(model, everything.only(context.classes, [domain]), context.classes)
        for domain in whole.domains
        if domain not in context.domains and domain in everything.domain_N
    }
    with autocast(run.train.precision, context.device):
        domain_accuracy = _domain_accuracy(model, context, known, probe_shots)
    return Audit(
        _scores(logits_NC, known, context.classes, run.forget),
        _certainty(logits_NC, known, context.classes, ~is_forget_N),
        _certainty(logits_NC, known, context.classes, is_forget_N),
        domain_accuracy,
        by_template,
        _novel_scores(model, run, context, everything, whole),
        unseen,
    )


def _features(model: Method, context: Context, manifest: Manifest) -> _Features:
    """The model's features of a manifest's test split."""
    rows = manifest.test_rows()
    transform, threads = context.backbone.transform, context.config.data.read_threads
    shares = [
        model(eval_batch(images, batch, transform, context.device)).features_BE
        for images in stream_views(manifest, rows, transform, STREAM_BLOCK, threads)
        for batch in batches_of(images, EVAL_BATCH_SIZE)
    ]
    features_NE = torch.cat(shares)
    table = manifest.columns(["class", "domain"], rows)
    return _Features(
        features_NE,
        np.array(table["class"].to_pylist()),
        np.array(table["domain"].to_pylist()),
    )


def _class_numbers(images: _Features, classes: Sequence[str]) -> Tensor:
    number = {name: i for i, name in enumerate(classes)}
    class_N = torch.tensor([number[name] for name in images.class_N], dtype=torch.long)
    return class_N.to(images.features_NE.device)


def _scores(
    logits_NC: Tensor, images: _Features, classes: Sequence[str], forget: Sequence[str]
) -> Scores:
    domains, domain_N = np.unique(images.domain_N, return_inverse=True)
    class_N = _class_numbers(images, classes)
    right_N = (logits_NC.argmax(dim=-1) == class_N).cpu().numpy()
    counts_2CD = np.zeros((2, len(classes), len(domains)), dtype=np.int64)
    np.add.at(counts_2CD[0], (class_N.cpu().numpy(), domain_N), right_N)
    np.add.at(counts_2CD[1], (class_N.cpu().numpy(), domain_N), 1)
    names = domains.tolist()
    return scores_from_counts(counts_2CD, forget_mask(forget, classes, names), names)


def _scores_in_words(
    model: Method, images: _Features, run: RunConfig, classes: Sequence[str], template: str
) -> Scores:
    text_CE = model.caption_features(classes, template)
    logits_NC = model.class_logits(images.features_NE, text_CE)
    return _scores(logits_NC, images, classes, run.forget)


def _novel_scores(
    model: Method, run: RunConfig, context: Context, everything: _Features, whole: Manifest
) -> Scores | None:
    """Scores on the classes that were not trained on, told from one another."""
    classes = tuple(name for name in whole.classes if name not in context.classes)
    images = everything.only(classes, context.domains)
    n_forget = int(images.to_forget(run.forget).sum())
    if not model.any_classes or not 0 < n_forget < len(images.domain_N):
        return None
    template = context.config.backbone.template
    text_CE = context.backbone.text_features(classes, template)
    task = Task(classes, context.domains, run.forget, text_CE, template)
    same = rebuilt(model, run, context.backbone, task)
    return _scores(same.class_logits(images.features_NE), images, classes, run.forget)


def _accuracy(model: Method, images: _Features, classes: Sequence[str]) -> float:
    right_N = model.class_logits(images.features_NE).argmax(dim=-1) == _class_numbers(
        images, classes
    )
    return right_N.float().mean().item()


def _certainty(
    logits_NC: Tensor, images: _Features, classes: Sequence[str], side_N: np.ndarray
) -> Certainty:
    mask_N = torch.from_numpy(side_N).to(logits_NC.device)
    class_N = _class_numbers(images, classes)[mask_N]
    return Certainty(entropy(logits_NC[mask_N]), calibration_error(logits_NC[mask_N], class_N))


def _domain_accuracy(model: Method, context: Context, test: _Features, shots: int) -> float | None:
    """Fits a linear probe on training images and asks it for the domains of the test images."""
    manifest, data = context.manifest, context.config.data
    shots = min(shots, *manifest.cell_counts("train").values())
    if shots == 0:
        return None
    rows = manifest.few_shot_split(shots, 0, data.split_seed).train_rows
    number = {domain: i for i, domain in enumerate(context.domains)}
    domain_N = np.array([number[domain] for domain in test.domain_N.tolist()])
    features_NE = test.features_NE.cpu().numpy()
    return probe_domains(model, context, context.read(rows), features_NE, domain_N)


def probe_domains(
    model: Method,
    context: Context,
    train: ImageSet,
    test_features_NE: np.ndarray,
    test_domain_N: np.ndarray,
) -> float:
    """How often a linear probe on a model's features tells the domain.

    Args:
        model: The model.
        context: Model and data that it belongs to.
        train: Images that the probe is fitted on.
        test_features_NE: The model's features of the images that it is asked of.
        test_domain_N: The numbers of their domains.
    """
    features_NE = image_features(model, train, context)
    probe = fit_probe(features_NE, train.domain_N, DOMAIN_PROBE_C)
    return probe_accuracy(
        probe, torch.from_numpy(test_features_NE), torch.from_numpy(test_domain_N)
    )
