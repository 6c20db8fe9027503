"""Domains for images that have none: the styles that they fall into.

Styles are found in a sample, so that memory does not grow with the images; each image then gets its
own by its feature, which the journal holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from adu.data.few_shot import hashes_of
from adu.errors import UserError
from pipeline.ingestion.encoder import stored_features
from pipeline.ingestion.listing import NO_DOMAIN, Cell
from pipeline.ingestion.styles import NOT_KNOWN, Styles, fit_styles

SAMPLE_IMAGES = 20_000
# No seed of a split: who is in the sample has nothing to do with who is set aside for testing.
SAMPLE_SEED = -1
HASHES = 2.0**64


@dataclass(frozen=True)
class Agreement:
    """How far styles are the domains of images whose own were not looked at.

    Attributes:
        images: How many.
        ari: Adjusted Rand index: 1 for the same parts, 0 for parts by chance.
        nmi: Normalised mutual information, from 0 to 1.
    """

    images: int
    ari: float
    nmi: float


@dataclass(frozen=True)
class PseudoDomains:
    """What gives images their domains.

    Attributes:
        names: Of the domains, by the numbers of their styles.
        styles: Tells an image's.
        classes: Numbers of the classes.
        backbone: Whose features were looked at.
        kept: Whether images with a domain keep it; else all have one, to compare with.
        agreement: With such domains; None where there are none to compare with.
    """

    names: tuple[str, ...]
    styles: Styles
    classes: Mapping[str, int]
    backbone: str
    kept: bool
    agreement: Agreement | None

    def filled(self, table: pa.Table) -> pa.Table:
        """What was read of some images, with domains in the place of features."""
        domains = table["domain"].to_pylist()
        has_feature = pc.is_valid(table["feature"])
        usable = table.filter(has_feature)
        if usable.num_rows:
            style_N = self.styles.of(*_seen(usable, self.classes)).tolist()
            for row, style in zip(np.flatnonzero(has_feature).tolist(), style_N, strict=True):
                if domains[row] == NO_DOMAIN or not self.kept:
                    domains[row] = self.names[style]
        place = table.column_names.index("domain")
        filled = table.set_column(place, "domain", pa.array(domains, pa.string()))
        return filled.drop_columns("feature")

    @property
    def card(self) -> dict[str, Any]:
        """For the manifest's card."""
        return {
            "domains": sorted(self.names),
            "told_by": f"image features of {self.backbone} without what their classes add",
            "labels": "kept" if self.kept else "compared",
            "agreement": None if self.agreement is None else asdict(self.agreement),
        }

    @property
    def report(self) -> str:
        """For a person."""
        told = f"{len(self.names)} domains by {self.card['told_by']} (pseudo domains); "
        if self.agreement is None:
            return f"{told}no labels to compare with"
        its = self.agreement
        which = "labelled images that were hidden" if self.kept else "labelled images"
        return f"{told}on {its.images:,} {which}: ARI {its.ari:.2f}, NMI {its.nmi:.2f}"


def check_styles(cells: Mapping[Cell, int], n_styles: int) -> None:
    """Checks that there are as many styles as labelled domains, where some images have none.

    Raises:
        UserError: If there are fewer.
    """
    labels = sorted({domain for domain, _ in cells})
    if labels[0] == NO_DOMAIN and len(labels) - 1 > n_styles:
        n = len(labels) - 1
        raise UserError(
            f"domains = 'pseudo:{n_styles}': images are labelled with {n} domains "
            f"({', '.join(labels[1:])}) (allowed: pseudo:{n}, or more)"
        )


def find_domains(
    tables: Iterable[pa.Table], cells: Mapping[Cell, int], n_styles: int, backbone: str
) -> PseudoDomains:
    """Finds the styles that images fall into.

    Domains of some images are styles, beside which there may be others. Domains of all images are
    only compared with the styles, which are found without them.

    Args:
        tables: What was read of the images, in any order.
        cells: How many of them each domain and class has.
        n_styles: How many styles there are.
        backbone: Whose features the images have.

    Raises:
        UserError: If there are too few images.
    """
    kept = any(domain == NO_DOMAIN for domain, _ in cells)
    sample = _sample(tables, cells, kept)
    if sample.num_rows < n_styles:
        raise UserError(
            f"domains = 'pseudo:{n_styles}': there are {sample.num_rows} images that can be used"
        )
    classes = {name: number for number, name in enumerate(sorted(set(sample["class"].to_pylist())))}
    features_NE, class_N = _seen(sample, classes)
    truth = np.array(sample["domain"].to_pylist())
    labels = sorted({*truth.tolist()} - {NO_DOMAIN}) if kept else []
    known_N = np.array([labels.index(its) if its in labels else NOT_KNOWN for its in truth])
    styles = fit_styles(features_NE, class_N, known_N, n_styles)
    found_N = styles.of(features_NE, class_N)
    names = _names(labels, found_N, n_styles)
    if kept:
        agreement = _agreement_of_hidden(features_NE, class_N, known_N, n_styles)
    else:
        agreement = _agreement(truth, found_N)
    return PseudoDomains(names, styles, classes, backbone, kept, agreement)


def _sample(tables: Iterable[pa.Table], cells: Mapping[Cell, int], kept: bool) -> pa.Table:
    """Some images, in the order of their names: about as many of each class and label.

    Who is in it depends on an image's name and on how many there are, not on the order.
    """
    counts: Counter[Cell] = Counter()
    for (domain, class_), n in cells.items():
        # Labels that are compared have no say in who is looked at.
        counts[domain if kept else NO_DOMAIN, class_] += n
    share = {cell: SAMPLE_IMAGES / len(counts) / n for cell, n in counts.items()}
    parts = []
    for table in tables:
        usable = table.filter(pc.is_valid(table["feature"]))
        usable = usable.select(["image_id", "domain", "class", "feature"])
        domains = usable["domain"].to_pylist() if kept else [NO_DOMAIN] * usable.num_rows
        cells_of = zip(domains, usable["class"].to_pylist(), strict=True)
        share_N = np.array([share[cell] for cell in cells_of])
        hash_N = hashes_of(usable["image_id"].to_pylist(), SAMPLE_SEED)[:, 0]
        parts.append(usable.filter(pa.array(hash_N / HASHES < share_N)))
    return pa.concat_tables(parts).sort_by("image_id")


def _seen(table: pa.Table, classes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes of images; classes that are not known have the number after the last."""
    numbers = [classes.get(name, len(classes)) for name in table["class"].to_pylist()]
    return stored_features(table["feature"].to_pylist()), np.array(numbers)


def _names(labels: Sequence[str], found_N: np.ndarray, n_styles: int) -> tuple[str, ...]:
    """Names of all styles: those that are known, and style-0, style-1, ... by size."""
    free = (f"style-{i}" for i in range(n_styles + len(labels)))
    free = (name for name in free if name not in labels)
    sizes = np.bincount(found_N, minlength=n_styles)[len(labels) :]
    names = {style: next(free) for style in np.argsort(-sizes, kind="stable").tolist()}
    return (*labels, *(names[style] for style in range(n_styles - len(labels))))


def _agreement_of_hidden(
    features_NE: np.ndarray, class_N: np.ndarray, known_N: np.ndarray, n_styles: int
) -> Agreement | None:
    """With half of the labels of each domain, when styles are found by the others."""
    hidden_N = np.zeros(len(known_N), bool)
    order = np.random.default_rng(0).permutation(len(known_N))
    for number in range(known_N.max() + 1):
        own = order[known_N[order] == number]
        hidden_N[own[: len(own) // 2]] = True
    if not hidden_N.any():
        return None
    styles = fit_styles(features_NE, class_N, np.where(hidden_N, NOT_KNOWN, known_N), n_styles)
    return _agreement(known_N[hidden_N], styles.of(features_NE[hidden_N], class_N[hidden_N]))


def _agreement(truth: np.ndarray, found: np.ndarray) -> Agreement | None:
    if len(np.unique(truth)) < 2:
        return None
    ari, nmi = adjusted_rand_score(truth, found), normalized_mutual_info_score(truth, found)
    return Agreement(len(truth), round(float(ari), 4), round(float(nmi), 4))
