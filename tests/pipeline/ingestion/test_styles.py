"""Styles are found beside classes that differ far more, and by the mixture that is meant."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.metrics import adjusted_rand_score

from pipeline.ingestion.styles import NOT_KNOWN, fit_styles

N_CLASSES, N_STYLES, WIDTH = 5, 3, 24


def made_up(seed=0, n=600, share=None):
    """Features, classes and styles; noise is not alike in all directions."""
    rng = np.random.default_rng(seed)
    classes_CE = 3 * rng.normal(size=(N_CLASSES, WIDTH))
    styles_KE = rng.normal(size=(N_STYLES, WIDTH))
    class_N = rng.integers(N_CLASSES, size=n)
    share_CK = np.full((N_CLASSES, N_STYLES), 1 / N_STYLES) if share is None else np.array(share)
    style_N = np.array([rng.choice(N_STYLES, p=share_CK[c]) for c in class_N])
    noise_NE = rng.normal(size=(n, WIDTH)) * np.linspace(0.2, 1, WIDTH)
    return classes_CE[class_N] + styles_KE[style_N] + noise_NE, class_N, style_N


def unknown(class_N):
    return np.full(len(class_N), NOT_KNOWN)


def test_styles_are_told_apart_though_classes_differ_more():
    features_NE, class_N, style_N = made_up()
    found_N = fit_styles(features_NE, class_N, unknown(class_N), N_STYLES).of(features_NE, class_N)
    assert adjusted_rand_score(style_N, found_N) > 0.95


def test_a_style_may_be_commoner_in_one_class_than_in_another():
    share = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]
    features_NE, class_N, style_N = made_up(share=share)
    found_N = fit_styles(features_NE, class_N, unknown(class_N), N_STYLES).of(features_NE, class_N)
    assert adjusted_rand_score(style_N, found_N) > 0.95


@pytest.mark.parametrize("n_known", [1, 3])
def test_known_styles_keep_their_numbers_and_others_follow(n_known):
    features_NE, class_N, style_N = made_up()
    known_N = unknown(class_N)
    for style in range(n_known):
        # Numbers are the caller's: here in another order than drawn.
        known_N[np.flatnonzero(style_N == N_STYLES - 1 - style)[:5]] = style
    found_N = fit_styles(features_NE, class_N, known_N, N_STYLES).of(features_NE, class_N)
    for style in range(n_known):
        assert np.mean((found_N == style) == (style_N == N_STYLES - 1 - style)) > 0.97
    assert set(found_N.tolist()) == {0, 1, 2}


def test_what_is_found_is_a_fixed_point_of_the_mixture():
    features_NE, class_N, _ = made_up()
    styles = fit_styles(features_NE, class_N, unknown(class_N), N_STYLES)
    seen_ND = (features_NE - styles.mean_E) @ styles.directions_ED
    noise_DD = np.linalg.inv(styles.whitening_DD @ styles.whitening_DD.T)
    density_NK = np.empty((len(class_N), N_STYLES))
    for i, (seen_D, class_) in enumerate(zip(seen_ND, class_N, strict=True)):
        for k in range(N_STYLES):
            mean_D = styles.classes_CD[class_] + styles.styles_KD[k]
            density = multivariate_normal(mean_D, noise_DD).pdf(seen_D)
            density_NK[i, k] = np.exp(styles.log_shares_K[k]) * density
    share_NK = density_NK / density_NK.sum(1, keepdims=True)
    np.testing.assert_allclose(share_NK.mean(0), np.exp(styles.log_shares_K), atol=1e-3)
    for k in range(N_STYLES):
        rest_ND = seen_ND - styles.classes_CD[class_N]
        mean_D = (share_NK[:, [k]] * rest_ND).sum(0) / share_NK[:, k].sum()
        np.testing.assert_allclose(mean_D, styles.styles_KD[k], atol=0.01)
    spread_DD = sum(
        np.einsum("n,nd,ne->de", share_NK[:, k], rest_ND - m_D, rest_ND - m_D)
        for k, m_D in enumerate(styles.styles_KD)
    )
    np.testing.assert_allclose(spread_DD / len(class_N), noise_DD, atol=0.01)


def test_an_image_of_a_class_that_nobody_has_seen_has_a_style_too():
    features_NE, class_N, _ = made_up()
    styles = fit_styles(features_NE, class_N, unknown(class_N), N_STYLES)
    assert styles.of(features_NE[:1], np.array([N_CLASSES]))[0] in range(N_STYLES)
