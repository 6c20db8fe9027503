"""How good the tiny CLIP is on pictures it never saw, and what its features encode.

Shape suffixes: N = pictures, D = domains, C = classes, E = embedding.
"""

from pathlib import Path

import open_clip
import torch
from torch import Tensor

from adu.demo.render import CLASSES, DOMAINS, render

EVALUATION_SEED = 2026
ZERO_SHOT_TEMPLATE = "a photo of a {}."
BATCH_SIZE = 64


@torch.no_grad()
def unseen_features(
    folder: Path, images_per_cell: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Encode fresh renders and the class names with the weights of a folder.

    Returns:
        Unit-length features_NE, class numbers, domain numbers, and unit-length texts_CE.
    """
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    tokens = open_clip.get_tokenizer(name)([ZERO_SHOT_TEMPLATE.format(c) for c in CLASSES])
    texts_CE = model.encode_text(tokens, normalize=True)
    cells = [(d, c) for d in range(len(DOMAINS)) for c in range(len(CLASSES))]
    pictures = [
        preprocess(render(DOMAINS[domain], CLASSES[label], index, seed))
        for domain, label in cells
        for index in range(images_per_cell)
    ]
    batches = torch.stack(pictures).split(BATCH_SIZE)
    features_NE = torch.cat([model.encode_image(batch, normalize=True) for batch in batches])
    cells_N2 = torch.tensor(cells).repeat_interleave(images_per_cell, dim=0)
    return features_NE, cells_N2[:, 1], cells_N2[:, 0], texts_CE


def zero_shot_accuracy(
    folder: Path, images_per_cell: int = 100, seed: int = EVALUATION_SEED
) -> dict[str, float]:
    """Zero-shot accuracy of every domain, and their average, with "a photo of a {class}.".

    Args:
        folder: An open_clip folder (configuration and weights).
        images_per_cell: Fresh renders for each pair of domain and class.
        seed: Seed of the renders; below 1,000,000 none was trained on.

    Returns:
        Accuracy from 0 to 1 by domain, and under "average".
    """
    features_NE, classes_N, domains_N, texts_CE = unseen_features(folder, images_per_cell, seed)
    right_N = ((features_NE @ texts_CE.T).argmax(dim=1) == classes_N).float()
    accuracy = {
        domain: round(right_N[domains_N == number].mean().item(), 4)
        for number, domain in enumerate(DOMAINS)
    }
    accuracy["average"] = round(right_N.mean().item(), 4)
    return accuracy


def feature_report(
    folder: Path, images_per_cell: int = 100, seed: int = EVALUATION_SEED
) -> dict[str, float]:
    """How far classes and domains stand apart in feature space.

    Returns:
        Shares of the features' variance that lie between classes and between domains, and
        the accuracy of a nearest-centroid classifier of either (fitted on every other picture).
    """
    features_NE, classes_N, domains_N, _ = unseen_features(folder, images_per_cell, seed)
    return {
        "variance_between_classes": round(between_share(features_NE, classes_N), 4),
        "variance_between_domains": round(between_share(features_NE, domains_N), 4),
        "nearest_centroid_class_accuracy": round(centroid_accuracy(features_NE, classes_N), 4),
        "nearest_centroid_domain_accuracy": round(centroid_accuracy(features_NE, domains_N), 4),
    }


def between_share(features_NE: Tensor, groups_N: Tensor) -> float:
    """The share of the total variance that the groups' means explain."""
    centred_NE = features_NE - features_NE.mean(dim=0)
    means = torch.stack([centred_NE[groups_N == g].mean(dim=0) for g in groups_N.unique()])
    sizes = torch.stack([(groups_N == g).sum() for g in groups_N.unique()])
    between = (means.square().sum(dim=1) * sizes).sum()
    return (between / centred_NE.square().sum()).item()


def centroid_accuracy(features_NE: Tensor, groups_N: Tensor) -> float:
    """Fit group means on the even pictures, classify the odd ones by the nearest mean."""
    even_NE, odd_NE = features_NE[0::2], features_NE[1::2]
    means = torch.stack(
        [even_NE[groups_N[0::2] == g].mean(dim=0) for g in range(int(groups_N.max()) + 1)]
    )
    nearest_N = torch.cdist(odd_NE, means).argmin(dim=1)
    return (nearest_N == groups_N[1::2]).float().mean().item()
