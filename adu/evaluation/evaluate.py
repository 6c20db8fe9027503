"""Accuracy of a model on decoded images and on the streamed test split.

Tensor names carry their shape: B images of a batch, N images, C classes, D domains, E features.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from adu.context import Context
from adu.data.decoded import ImageSet, batches_of, eval_batch
from adu.data.forget import forget_mask
from adu.distributed import gather_objects, rank_and_world_size, rank_slice, sum_over_ranks
from adu.evaluation.metrics import Scores, scores_from_counts
from adu.methods import Output
from adu.methods.zero_shot import ZeroShot

EVAL_BATCH_SIZE = 64


@dataclass(frozen=True)
class TestResult:
    """What a model does on the test split.

    Attributes:
        scores: Mem, For, H and per-domain accuracy.
        counts_2CD: Rightly classified images, and all images, of each class in each domain.
        features_NE: Unit-length features of a fixed sample of images, for pictures.
        domain_N: Domain of each sampled image.
        class_N: Class of each sampled image.
        test_s: Time that it took.
    """

    __test__ = False  # not a test case, whatever pytest thinks of the name

    scores: Scores
    counts_2CD: np.ndarray
    features_NE: np.ndarray
    domain_N: np.ndarray
    class_N: np.ndarray
    test_s: float


def evaluate_images(
    model: nn.Module,
    context: Context,
    images: ImageSet,
    forget: Sequence[str],
    which: Sequence[int] | None = None,
) -> Scores:
    """Scores a model on decoded images, shared out over the workers; see `count_images`."""
    counts_2CD = count_images(model, context, images, which)
    return scores_of(counts_2CD, forget, context.classes, context.domains)


def count_images(
    model: nn.Module, context: Context, images: ImageSet, which: Sequence[int] | None = None
) -> np.ndarray:
    """Counts what a model classifies rightly, shared out over the workers.

    Args:
        model: The model.
        context: Model and data that it belongs to.
        images: The images.
        which: Numbers of those to look at; None: all.

    Returns:
        counts_2CD: rightly classified images, and all images, of each class in each domain.
    """
    rank, world_size = rank_and_world_size()
    seen = range(len(images)) if which is None else which
    own = seen[rank_slice(len(seen), rank, world_size)]
    counts_2CD = _no_counts(context)
    for start in range(0, len(own), EVAL_BATCH_SIZE):
        rows = list(own[start : start + EVAL_BATCH_SIZE])
        images_BCHW = eval_batch(images, rows, context.backbone.transform, context.device)
        logits_BC, _ = _predict(model, images_BCHW)
        class_B, domain_B = images.class_N[rows], images.domain_N[rows]
        counts_2CD += _count(
            logits_BC, class_B.to(context.device), domain_B.to(context.device), context
        )
    return _summed(counts_2CD)


def evaluate_test(
    model: nn.Module, context: Context, forget: Sequence[str], feature_samples_per_domain: int = 60
) -> TestResult:
    """Scores a model on the test split, which is read now if it has not been read for the job.

    Args:
        model: Gives an `adu.methods.Output` of images, as every method does.
        context: Model and data that it belongs to.
        forget: What was to be forgotten, as in `adu.data.forget`.
        feature_samples_per_domain: Images of each domain whose features are returned; always
            the same ones for a manifest.
    """
    if not isinstance(model, ZeroShot) or model.backbone is not context.backbone:
        return _tested(model, context, forget, feature_samples_per_domain)
    # The untouched model does not depend on what is to be forgotten: once a context is enough.
    rounded = torch.is_autocast_enabled(context.device.type)
    key = f"zero-shot, {feature_samples_per_domain} features, bf16: {rounded}"
    if key not in context.remembered:
        context.remembered[key] = _tested(model, context, forget, feature_samples_per_domain)
    known: TestResult = context.remembered[key]
    scores = scores_of(known.counts_2CD, forget, context.classes, context.domains)
    return replace(known, scores=scores)


def _tested(
    model: nn.Module, context: Context, forget: Sequence[str], feature_samples_per_domain: int
) -> TestResult:
    start_s = time.perf_counter()
    rank, world_size = rank_and_world_size()
    rows = context.manifest.test_rows()
    own = rank_slice(len(rows), rank, world_size)
    sampled = _sampled_ids(context, rows, feature_samples_per_domain)
    counts_2CD = _no_counts(context)
    kept: list[tuple[np.ndarray, int, int]] = []
    for images in context.test_images(own):
        for batch in batches_of(images, EVAL_BATCH_SIZE):
            images_BCHW = eval_batch(images, batch, context.backbone.transform, context.device)
            logits_BC, features_BE = _predict(model, images_BCHW)
            class_B, domain_B = images.class_N[batch], images.domain_N[batch]
            counts_2CD += _count(
                logits_BC, class_B.to(context.device), domain_B.to(context.device), context
            )
            features = features_BE.float().cpu().numpy()
            for i, number in enumerate(batch):
                if images.image_ids[number] in sampled:
                    kept.append((features[i], int(domain_B[i]), int(class_B[i])))
    counts = _summed(counts_2CD)
    everyone = [item for share in gather_objects(kept) for item in share]
    return TestResult(
        scores_of(counts, forget, context.classes, context.domains),
        counts,
        np.stack([features for features, _, _ in everyone]),
        np.array([domain for _, domain, _ in everyone]),
        np.array([class_ for _, _, class_ in everyone]),
        time.perf_counter() - start_s,
    )


def scores_of(
    counts_2CD: np.ndarray, forget: Sequence[str], classes: Sequence[str], domains: Sequence[str]
) -> Scores:
    """The scores of counted answers for a forget set, as in `adu.data.forget`."""
    forget_CD = forget_mask(forget, classes, domains)
    return scores_from_counts(counts_2CD, forget_CD, domains)


def image_features(model: nn.Module, images: ImageSet, context: Context) -> Tensor:
    """Unit-length features_NE of decoded images."""
    shares = []
    for batch in batches_of(images, EVAL_BATCH_SIZE):
        images_BCHW = eval_batch(images, batch, context.backbone.transform, context.device)
        shares.append(_predict(model, images_BCHW)[1])
    return torch.cat(shares)


@torch.no_grad()
def _predict(model: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    model.eval()
    output: Output = model(images_BCHW)
    return output.logits_BC, output.features_BE


def _no_counts(context: Context) -> Tensor:
    shape = (2, len(context.classes), len(context.domains))
    return torch.zeros(shape, dtype=torch.long, device=context.device)


def _count(logits_BC: Tensor, class_B: Tensor, domain_B: Tensor, context: Context) -> Tensor:
    """Rightly classified images and all images, of each class in each domain: counts_2CD."""
    counts_2CD = _no_counts(context)
    right_B = (logits_BC.argmax(dim=-1) == class_B).long()
    for counts_CD, value_B in zip(counts_2CD, (right_B, torch.ones_like(right_B)), strict=True):
        counts_CD.index_put_((class_B, domain_B), value_B, accumulate=True)
    return counts_2CD


def _summed(counts_2CD: Tensor) -> np.ndarray:
    """Counts over all workers."""
    return sum_over_ranks(counts_2CD).cpu().numpy()


def _sampled_ids(context: Context, rows: np.ndarray, per_domain: int) -> set[str]:
    """The images of the test split with the smallest hashes, so many of each domain."""
    table = context.manifest.columns(["image_id", "domain"], rows)
    by_domain: dict[str, list[str]] = {}
    for row in table.to_pylist():
        by_domain.setdefault(row["domain"], []).append(row["image_id"])
    return {
        image_id
        for ids in by_domain.values()
        for image_id in sorted(ids, key=_stable_hash)[:per_domain]
    }


def _stable_hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
