"""Tells styles apart: which images of a class look alike in how they show it.

The image feature of a frozen model says above all what an image shows. Where classes are known
that can be taken off: a feature is what its class and its style add, and noise that is alike
everywhere, f = class + style + N(0, S). All of it is found together by expectation maximisation, as
a mixture of Gaussians with one covariance. A style may be more common in one class than in another.

Array names carry their shape: N images, E feature width, D directions that are looked at, C
classes, K styles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from sklearn.cluster import KMeans

# Those in which features vary most once their classes are taken off.
N_DIRECTIONS = 16
N_STARTS = 10
MAX_STEPS = 200
# The mean log-likelihood of an image grows by less in the last step.
TOLERANCE = 1e-7
# Added to that of each direction, as a share of the mean one: there may be none.
LEAST_VARIANCE = 1e-6
NOT_KNOWN = -1


@dataclass(frozen=True)
class Styles:
    """What tells the style of an image.

    Attributes:
        mean_E: Of all features.
        directions_ED: What of a feature is looked at.
        classes_CD: What each class adds, and after the last of them nothing.
        styles_KD: What each style adds.
        whitening_DD: Makes the noise alike in all directions.
        log_shares_K: Logarithms of how common the styles are.
    """

    mean_E: np.ndarray
    directions_ED: np.ndarray
    classes_CD: np.ndarray
    styles_KD: np.ndarray
    whitening_DD: np.ndarray
    log_shares_K: np.ndarray

    def of(self, features_NE: np.ndarray, class_N: np.ndarray) -> np.ndarray:
        """The number of each image's style."""
        seen_ND = (features_NE - self.mean_E) @ self.directions_ED
        return self.log_odds(seen_ND - self.classes_CD[class_N]).argmax(1)

    def log_odds(self, rest_ND: np.ndarray) -> np.ndarray:
        """Log-densities in each style, (N, K), but for what they have in common.

        Args:
            rest_ND: What is seen of features without what their classes add.
        """
        apart_NK = _apart(rest_ND @ self.whitening_DD, self.styles_KD @ self.whitening_DD)
        return self.log_shares_K - apart_NK / 2


def fit_styles(
    features_NE: np.ndarray, class_N: np.ndarray, known_N: np.ndarray, n_styles: int
) -> Styles:
    """Finds styles among images.

    Where none is known there is chance in where the search starts: the likeliest of some is taken.

    Args:
        features_NE: Their features, of unit length.
        class_N: Numbers of their classes, from 0 without a gap.
        known_N: Numbers of their styles where they are known, from 0 without a gap; elsewhere
            `NOT_KNOWN`.
        n_styles: K: the known ones, or more.
    """
    mean_E = features_NE.mean(0)
    directions_ED = _directions(features_NE, class_N)
    seen_ND = (features_NE - mean_E) @ directions_ED
    rest_ND = seen_ND - _means(seen_ND, class_N)[class_N]
    n_starts = N_STARTS if n_styles > known_N.max() + 1 else 1
    found = []
    for start in range(n_starts):
        first_N = _first_styles(rest_ND, known_N, n_styles, start)
        shares_NK = np.eye(n_styles)[first_N]
        found.append(_maximised(seen_ND, class_N, known_N, shares_NK, mean_E, directions_ED))
    styles = max(found, key=lambda each: each[0])[1]
    nothing_1D = np.zeros((1, directions_ED.shape[1]))
    return replace(styles, classes_CD=np.concatenate([styles.classes_CD, nothing_1D]))


def _directions(features_NE: np.ndarray, class_N: np.ndarray) -> np.ndarray:
    rest_NE = features_NE - _means(features_NE, class_N)[class_N]
    _, vectors_EE = np.linalg.eigh(rest_NE.T @ rest_NE)
    return vectors_EE[:, ::-1][:, :N_DIRECTIONS]


def _first_styles(
    rest_ND: np.ndarray, known_N: np.ndarray, n_styles: int, start: int
) -> np.ndarray:
    """The nearest of some centres: the means of known styles, and others by k-means."""
    is_known = known_N != NOT_KNOWN
    centres_KD = _means(rest_ND[is_known], known_N[is_known])
    if n_styles > len(centres_KD):
        # k-means++ (Arthur and Vassilvitskii, SODA 2007), going on from the known ones.
        rng = np.random.default_rng(start)
        for _ in range(n_styles - len(centres_KD)):
            far_N = _apart(rest_ND, centres_KD).min(1, initial=1e6).clip(1e-12)
            drawn = rng.choice(len(rest_ND), p=far_N / far_N.sum())
            centres_KD = np.concatenate([centres_KD, rest_ND[[drawn]]])
        centres_KD = KMeans(n_styles, init=centres_KD, n_init=1).fit(rest_ND).cluster_centers_
    return np.where(is_known, known_N, _apart(rest_ND, centres_KD).argmin(1))


def _maximised(
    seen_ND: np.ndarray,
    class_N: np.ndarray,
    known_N: np.ndarray,
    shares_NK: np.ndarray,
    mean_E: np.ndarray,
    directions_ED: np.ndarray,
) -> tuple[float, Styles]:
    """The mean log-likelihood, and with what; from first shares of the styles in each image."""
    n_images, n_directions = seen_ND.shape
    is_known = known_N != NOT_KNOWN
    is_its_NK = np.arange(shares_NK.shape[1]) == known_N[is_known][:, None]
    classes_CD = _means(seen_ND, class_N)
    likelihood, last = -np.inf, -np.inf
    for _ in range(MAX_STEPS):
        n_K = shares_NK.sum(0).clip(1e-12)
        styles_KD = shares_NK.T @ (seen_ND - classes_CD[class_N]) / n_K[:, None]
        classes_CD = _means(seen_ND - shares_NK @ styles_KD, class_N)
        rest_ND = seen_ND - classes_CD[class_N]
        noise_DD = _noise(rest_ND, shares_NK, styles_KD)
        noise_DD += LEAST_VARIANCE * np.trace(noise_DD) / n_directions * np.eye(n_directions)
        whitening_DD = np.linalg.inv(np.linalg.cholesky(noise_DD)).T
        log_shares_K = np.log(n_K / n_images)
        styles = Styles(mean_E, directions_ED, classes_CD, styles_KD, whitening_DD, log_shares_K)
        odds_NK = styles.log_odds(rest_ND)
        odds_NK[is_known] = np.where(is_its_NK, odds_NK[is_known], -np.inf)
        most_N1 = odds_NK.max(1, keepdims=True)
        shares_NK = np.exp(odds_NK - most_N1)
        sum_N1 = shares_NK.sum(1, keepdims=True)
        shares_NK /= sum_N1
        likelihood = (most_N1 + np.log(sum_N1)).mean() + np.log(np.diag(whitening_DD)).sum()
        if likelihood - last < TOLERANCE:
            break
        last = likelihood
    return float(likelihood), styles


def _noise(rest_ND: np.ndarray, shares_NK: np.ndarray, styles_KD: np.ndarray) -> np.ndarray:
    """The covariance around the styles, weighted by their shares in each image."""
    cross_DD = rest_ND.T @ shares_NK @ styles_KD
    own_DD = (styles_KD.T * shares_NK.sum(0)) @ styles_KD
    return (rest_ND.T @ rest_ND - cross_DD - cross_DD.T + own_DD) / len(rest_ND)


def _apart(points_ND: np.ndarray, centres_KD: np.ndarray) -> np.ndarray:
    """Squared distances, (N, K)."""
    own_N1, their_K = (points_ND**2).sum(1, keepdims=True), (centres_KD**2).sum(1)
    return own_N1 - 2 * points_ND @ centres_KD.T + their_K


def _means(values_NE: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """The mean of each group, by its number."""
    sums = np.zeros((int(group_N.max(initial=NOT_KNOWN)) + 1, values_NE.shape[1]))
    np.add.at(sums, group_N, values_NE)
    return sums / np.bincount(group_N, minlength=len(sums)).clip(1)[:, None]
