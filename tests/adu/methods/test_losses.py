"""The loss terms against the paper's formulas, written anew with loops in float64."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adu.methods.losses import (
    BANDWIDTH_SCALES,
    ForgetLoss,
    Kernel,
    domain_loss,
    forget_loss,
    gaussian_kernel,
    memorize_loss,
    mmd_squared,
)

RNG = np.random.default_rng(0)


def log_softmax_64(logits):
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def kernel_64(features, name, bandwidth=1.0):
    """A function of two image numbers: the kernel from its definition."""
    n = len(features)
    norm = 1 if name == "laplace" else 2
    apart = [[float((abs(a - b) ** norm).sum()) for b in features] for a in features]
    pairs = [apart[i][j] for i in range(n) for j in range(i + 1, n)]
    mean = sum(pairs) / len(pairs) or 1.0
    # Of an even number of pairs torch takes the lower one in the middle.
    median = sorted(pairs)[(len(pairs) - 1) // 2] or 1.0
    scales = {"gaussian": BANDWIDTH_SCALES, "laplace": (1.0,), "gaussian_median": (1.0,)}
    width = bandwidth * (median if name == "gaussian_median" else mean)

    def k(i, j):
        if name == "linear":
            return float(sum(a * b for a, b in zip(features[i], features[j], strict=True)))
        values = [math.exp(-apart[i][j] / (scale * width)) for scale in scales[name]]
        return sum(values) / len(values)

    return k


def mmd_64(features, domains, n_domains, estimator, kernel="gaussian", bandwidth=1.0):
    """MMD^2 from its definition: sums of kernel values over pairs of images."""
    n = len(features)
    least = 1 if estimator == "biased" and kernel != "pair_median" else 2
    groups = [[i for i in range(n) if domains[i] == d] for d in range(n_domains)]
    groups = [g for g in groups if len(g) >= least]

    def within(g, k):
        if estimator == "biased":
            return sum(k(i, j) for i in g for j in g) / len(g) ** 2
        return sum(k(i, j) for i in g for j in g if i != j) / (len(g) * (len(g) - 1))

    def between(g, h, k):
        return sum(k(i, j) for i in g for j in h) / (len(g) * len(h))

    def squared(g, h):
        if kernel == "pair_median":
            k = pair_kernel_64(features, g, h, bandwidth)
        else:
            k = kernel_64(features, kernel, bandwidth)
        return within(g, k) + within(h, k) - 2 * between(g, h, k)

    pairs = [(g, h) for a, g in enumerate(groups) for h in groups[a + 1 :]]
    return sum(squared(g, h) for g, h in pairs) / len(pairs) if pairs else 0.0


def pair_kernel_64(features, g, h, bandwidth):
    """The authors': exp(-d^2 / (2 s^2)), s the median distance between the two domains' samples."""
    apart = sorted(math.dist(features[i], features[j]) for i in g for j in h)
    s = apart[(len(apart) - 1) // 2] or 1.0

    def k(i, j):
        return math.exp(-(math.dist(features[i], features[j]) ** 2) / (2 * bandwidth * s**2))

    return k


def random_batch(b=12, c=5, dtype=torch.float32):
    logits = RNG.normal(size=(b, c)) * 3
    classes = RNG.integers(0, c, b)
    retain = RNG.random(b) < 0.6
    retain[:2] = [True, False]
    return logits, classes, retain


def test_memorize_loss_is_mean_cross_entropy_over_retain_images():
    logits, classes, retain = random_batch()
    rows = [i for i in range(len(logits)) if retain[i]]
    expected = -np.mean([log_softmax_64(logits[i])[classes[i]] for i in rows])
    found = memorize_loss(torch.tensor(logits), torch.tensor(classes), torch.tensor(retain))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_forget_loss_is_mean_cross_entropy_with_uniform():
    logits, classes, retain = random_batch()
    rows = [i for i in range(len(logits)) if not retain[i]]
    expected = np.mean([-log_softmax_64(logits[i]).mean() for i in rows])
    found = forget_loss(torch.tensor(logits), torch.tensor(classes), torch.tensor(retain))
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_the_authors_forget_loss_is_minus_the_mean_entropy():
    logits, classes, retain = random_batch()
    p = [np.exp(log_softmax_64(logits[i])) for i in range(len(logits)) if not retain[i]]
    expected = np.mean([(row * np.log(row + 1e-5)).sum() for row in p])
    found = forget_loss(
        torch.tensor(logits), torch.tensor(classes), torch.tensor(retain), "entropy"
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_neggrad_goes_up_the_cross_entropy_of_forget_images():
    logits, classes, retain = random_batch()
    rows = [i for i in range(len(logits)) if not retain[i]]
    expected = np.mean([log_softmax_64(logits[i])[classes[i]] for i in rows])
    found = forget_loss(
        torch.tensor(logits), torch.tensor(classes), torch.tensor(retain), "neggrad"
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_forget_loss_is_smallest_at_uniform():
    loss = forget_loss(torch.zeros(3, 7), torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize(
    "domains",
    [
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        [0, 0, 1, 1, 1, 1, 1, 1, 1],  # domain 2 is missing
        [0, 1, 1, 1, 2, 2, 2, 2, 2],  # one image of domain 0
        [1, 1, 1, 1, 1, 1, 1, 1, 1],  # nothing to compare
    ],
)
def test_mmd_matches_its_definition(kernel, estimator, domains):
    features = RNG.normal(size=(9, 6)) + np.array(domains)[:, None]
    found = mmd_squared(torch.tensor(features), torch.tensor(domains), 3, estimator, kernel)
    expected = mmd_64(features, domains, 3, estimator, kernel)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_mmd_with_the_linear_kernel_is_the_distance_of_the_means():
    features = RNG.normal(size=(10, 3))
    domains = np.array([0] * 4 + [1] * 6)
    found = mmd_squared(torch.tensor(features), torch.tensor(domains), 2, "biased", "linear")
    apart = features[:4].mean(axis=0) - features[4:].mean(axis=0)
    assert found.item() == pytest.approx((apart**2).sum(), rel=1e-5)


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_mmd_of_identical_features_is_zero_with_a_finite_gradient(kernel):
    features = torch.ones(6, 4, requires_grad=True)
    value = mmd_squared(features, torch.tensor([0, 0, 0, 1, 1, 1]), 2, kernel=kernel)
    value.backward()
    assert value.item() == 0
    assert torch.isfinite(features.grad).all()


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_mmd_of_one_image_is_zero(kernel):
    assert mmd_squared(torch.randn(1, 4), torch.tensor([1]), 2, kernel=kernel).item() == 0


def test_mmd_stays_below_two_for_domains_far_apart():
    features = torch.cat([torch.zeros(8, 4), torch.full((8, 4), 100.0)])
    value = mmd_squared(features, torch.tensor([0] * 8 + [1] * 8), 2)
    assert 0.5 < value.item() < 2


def test_gaussian_kernel_of_an_image_with_itself_is_one():
    diagonal = gaussian_kernel(torch.randn(5, 3)).diagonal()
    assert torch.equal(diagonal, torch.ones(5))


@pytest.mark.parametrize("kind", get_args(ForgetLoss))
@pytest.mark.parametrize("missing", ["retain", "forget"])
def test_a_missing_side_gives_zero_loss_and_zero_gradient(missing, kind):
    logits = torch.randn(4, 3, requires_grad=True)
    retain = torch.full((4,), missing == "forget")
    if missing == "retain":
        loss = memorize_loss(logits, torch.zeros(4, dtype=torch.long), retain)
    else:
        loss = forget_loss(logits, torch.zeros(4, dtype=torch.long), retain, kind)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_huge_and_bf16_logits_give_the_exact_losses(dtype, size):
    logits = (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * size).to(dtype)
    classes, retain = [0, 1, 2, 3, 4, 0], [True, False, True, False, True, False]
    exact = logits.double().numpy()
    log_p = [log_softmax_64(row) for row in exact]
    memorize = -np.mean([log_p[i][classes[i]] for i in range(6) if retain[i]])
    forget = -np.mean([log_p[i].mean() for i in range(6) if not retain[i]])
    domain = -np.mean([log_p[i][classes[i]] for i in range(6)])
    class_B, retain_B = torch.tensor(classes), torch.tensor(retain)
    assert memorize_loss(logits, class_B, retain_B).item() == pytest.approx(memorize, rel=1e-6)
    assert forget_loss(logits, class_B, retain_B).item() == pytest.approx(forget, rel=1e-6)
    assert domain_loss(logits, class_B).item() == pytest.approx(domain, rel=1e-6)


@pytest.mark.parametrize("kernel", get_args(Kernel))
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
def test_mmd_of_bf16_features_is_computed_in_full_precision(kernel, estimator):
    features = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)).bfloat16()
    domains = [0, 0, 0, 1, 1, 1, 2, 2]
    found = mmd_squared(features, torch.tensor(domains), 3, estimator, kernel)
    expected = mmd_64(features.double().numpy(), domains, 3, estimator, kernel)
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kernel", [name for name in get_args(Kernel) if name != "linear"])
def test_the_bandwidth_is_a_factor_on_the_kernels_width(kernel):
    features, domains = RNG.normal(size=(8, 5)), [0, 0, 0, 1, 1, 1, 2, 2]
    for bandwidth in (0.1, 3.0):
        found = mmd_squared(
            torch.tensor(features), torch.tensor(domains), 3, "biased", kernel, bandwidth
        )
        expected = mmd_64(features, domains, 3, "biased", kernel, bandwidth)
        assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_mmds_gradient_is_that_of_its_definition_with_the_width_held_fixed(kernel):
    """Finite differences in float64, with the kernel's width that of the point itself."""
    features, domains = RNG.normal(size=(5, 3)), [0, 0, 1, 1, 1]
    tensor = torch.tensor(features, dtype=torch.float32, requires_grad=True)
    mmd_squared(tensor, torch.tensor(domains), 2, "biased", kernel).backward()
    numeric = np.zeros_like(features)
    for at in np.ndindex(features.shape):
        values = []
        for step in (1e-5, -1e-5):
            moved = features.copy()
            moved[at] += step
            # The bandwidth that gives the moved batch the width of the unmoved one.
            bandwidth = width_64(features, kernel) / width_64(moved, kernel)
            values.append(mmd_64(moved, domains, 2, "biased", kernel, bandwidth))
        numeric[at] = (values[0] - values[1]) / 2e-5
    np.testing.assert_allclose(tensor.grad.numpy(), numeric, rtol=1e-3, atol=1e-5)


def width_64(features, kernel):
    if kernel == "linear":
        return 1.0
    if kernel == "pair_median":  # of the one pair of domains in that test
        between = sorted(math.dist(a, b) ** 2 for a in features[:2] for b in features[2:])
        return between[(len(between) - 1) // 2]
    norm = 1 if kernel == "laplace" else 2
    pairs = [(abs(a - b) ** norm).sum() for i, a in enumerate(features) for b in features[:i]]
    return sorted(pairs)[(len(pairs) - 1) // 2] if kernel == "gaussian_median" else np.mean(pairs)


def test_domain_loss_is_mean_cross_entropy():
    logits = RNG.normal(size=(6, 4))
    domains = RNG.integers(0, 4, 6)
    expected = -np.mean([log_softmax_64(row)[d] for row, d in zip(logits, domains, strict=True)])
    found = domain_loss(torch.tensor(logits), torch.tensor(domains))
    assert found.item() == pytest.approx(expected, rel=1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor has that any operation gives."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("kernel", get_args(Kernel))
def test_mmd_never_holds_the_differences_of_all_pairs_in_all_dimensions(kernel):
    points_BE = torch.randn(64, 48, requires_grad=True)
    with LargestTensor() as largest:
        mmd_squared(points_BE, torch.arange(64) % 3, 3, kernel=kernel).backward()
    assert largest.numbers <= 5 * 64 * 64  # the five Gaussians of the default kernel
