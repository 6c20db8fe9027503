"""Which features of a frozen model tell domains: agreement of clusters with true labels.

    python -m tests.benchmarks.style_features
    python -m tests.benchmarks.style_features --source IMAGES --backbone MODEL

ARI and NMI, means over --seeds, of k-means on standardised features, the same without the classes'
means, and the mixture that ingest uses. Channel statistics are the mean and the logarithm of the
standard deviation over an image's patches, as in adaptive instance normalisation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from adu.data.decoded import batches_of, eval_batch
from adu.data.manifest import Manifest
from adu.data.opening import open_images
from adu.data.reading import stream_views
from adu.demo.manifest import demo_manifest
from adu.models.backbone import Backbone, BackboneConfig
from adu.models.openclip import load_backbone
from pipeline.ingestion.styles import NOT_KNOWN, fit_styles

CPU = torch.device("cpu")
BATCH_SIZE = 64


def features_of(images_BCSS: Tensor, backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    """Each candidate's name and its features of a batch."""
    tower = backbone.tower
    yield "pixels: channel statistics", statistics_of(images_BCSS.flatten(2).transpose(1, 2))
    tokens_BTW = tower.embed(images_BCSS, None)
    shown = {max(1, round(tower.n_blocks * part)) for part in (1 / 6, 1 / 3, 1 / 2, 3 / 4, 1)}
    for i in range(tower.n_blocks):
        tokens_BTW = tower.block(i, tokens_BTW)
        if i + 1 in shown:
            yield (
                f"block {i + 1}: channel statistics",
                statistics_of(tokens_BTW[:, tower.n_prefix :]),
            )
            yield f"block {i + 1}: class token", tokens_BTW[:, 0]
    yield "image feature", F.normalize(tower.pool(tokens_BTW), dim=-1)


def statistics_of(values_BNW: Tensor) -> Tensor:
    """Mean and logarithm of the standard deviation of each channel."""
    return torch.cat([values_BNW.mean(1), (values_BNW.std(1) + 1e-6).log()], dim=1)


@torch.no_grad()
def all_features(manifest: Manifest, backbone: Backbone) -> tuple[dict[str, np.ndarray], ...]:
    """Features by name, and classes and domains, of all images."""
    found: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[np.ndarray]] = {"class": [], "domain": []}
    rows = np.arange(manifest.n_images)
    for images in stream_views(manifest, rows, backbone.transform, 512, threads=2):
        labels["class"].append(images.class_N.numpy())
        labels["domain"].append(images.domain_N.numpy())
        for batch in batches_of(images, BATCH_SIZE):
            images_BCSS = eval_batch(images, batch, backbone.transform)
            for name, features_BE in features_of(images_BCSS, backbone):
                found.setdefault(name, []).append(features_BE.double().numpy())
    return tuple({k: np.concatenate(v) for k, v in part.items()} for part in (found, labels))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="folder DOMAIN/CLASS/FILE; unset: the demo's")
    parser.add_argument("--backbone", default="demo")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    manifest = open_images(arguments.source) if arguments.source else demo_manifest()
    backbone = load_backbone(BackboneConfig(name=arguments.backbone), CPU)
    features, labels = all_features(manifest, backbone)
    class_N, domain_N = labels["class"], labels["domain"]
    print("| | k-means | without classes' means | the mixture |", "|---|---|---|---|", sep="\n")
    for name, features_NE in features.items():
        rest_NE = features_NE.copy()
        for class_ in np.unique(class_N):
            rest_NE[class_N == class_] -= rest_NE[class_N == class_].mean(0)
        unknown_N = np.full(len(class_N), NOT_KNOWN)
        scaled_NE = standardised(features_NE)
        styles = fit_styles(scaled_NE, class_N, unknown_N, len(manifest.domains))
        clusters = (
            [k_means(scaled_NE, seed, manifest) for seed in range(arguments.seeds)],
            [k_means(standardised(rest_NE), seed, manifest) for seed in range(arguments.seeds)],
            [styles.of(scaled_NE, class_N)],
        )
        told = " | ".join(agreement(domain_N, its) for its in clusters)
        print(f"| {name} | {told} |", flush=True)


def standardised(features_NE: np.ndarray) -> np.ndarray:
    """Each feature with mean 0 and standard deviation 1."""
    return (features_NE - features_NE.mean(0)) / (features_NE.std(0) + 1e-9)


def k_means(features_NE: np.ndarray, seed: int, manifest: Manifest) -> np.ndarray:
    """The best of ten starts."""
    return KMeans(len(manifest.domains), n_init=10, random_state=seed).fit_predict(features_NE)


def agreement(domain_N: np.ndarray, clusters: list[np.ndarray]) -> str:
    """Mean ARI and NMI."""
    ari = np.mean([adjusted_rand_score(domain_N, its) for its in clusters])
    nmi = np.mean([normalized_mutual_info_score(domain_N, its) for its in clusters])
    return f"{ari:.2f} / {nmi:.2f}"


if __name__ == "__main__":
    main()
