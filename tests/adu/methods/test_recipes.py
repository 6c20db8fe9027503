"""The recipes: what they fill in, and three steps of each against a re-formulation in float64.

Tensor names carry their shape: B images, T tokens, C classes, E feature width.
"""

import copy
import math
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from adu.data.decoded import plain_batches, train_batch
from adu.methods.adu import AduConfig
from adu.methods.recipes import RECIPES
from adu.training.config import RunConfig, TrainConfig
from adu.training.trainer import Trainer
from tests.adu.formulas import attention_64, norm_64
from tests.tiny import CLASSES, tiny_context


def run_config(method, train=None):
    return RunConfig.model_validate(
        {"forget": ["sketch"], "method": {"name": "adu", **method}, "train": train or {}}
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_its_options_and_leaves_the_others(name):
    run = run_config({"recipe": name})
    method, train = run.method.model_dump(by_alias=True), run.train.model_dump()
    assert method == AduConfig().model_dump(by_alias=True) | RECIPES[name].method | {"recipe": name}
    assert train == TrainConfig().model_dump() | RECIPES[name].train


def test_what_is_set_wins_over_the_recipe_however_it_is_given():
    run = run_config({"recipe": "authors", "lambda": 3}, {"batch_size": 16})
    assert (run.method.lambda_, run.method.forget_loss) == (3, "entropy")
    assert (run.train.batch_size, run.train.sampling) == (16, "plain")
    method = AduConfig(recipe="authors", lambda_=3)
    # As the pipeline makes its runs: of configurations that are there already.
    assert RunConfig(forget=("sketch",), method=method, train=TrainConfig(batch_size=16)) == run


def test_a_recipe_that_is_written_out_and_read_again_is_the_same():
    run = run_config({"recipe": "authors", "lambda": 3}, {"epochs": 2})
    assert RunConfig.model_validate(run.model_dump(mode="json", by_alias=True)) == run


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    context = tiny_context(tmp_path_factory.mktemp("tiny"))
    context.backbone.clip.double()
    return replace(context, text_CE=context.text_CE.double())


EPOCHS, LR, DEPTH, N_PATCHES = 3, 0.02, 3, 16
# One step an epoch, all 18 images in it; two blocks are all that the tiny text tower has.
TRAIN = {"epochs": EPOCHS, "batch_size": 18, "lr": LR, "warmup_lr": 0.01, "sampling": "plain"}
GIVEN = {"paper": {}, "authors": {"text_depth": 2}, "stable": {}}
# The paper's and the authors' warm-up is constant; ours rises over two epochs.
DASSL_LR = [0.01, LR, LR * (1 + math.cos(math.pi / EPOCHS)) / 2]
LRS = {"paper": DASSL_LR, "authors": DASSL_LR, "stable": [LR / 2, LR, LR]}


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps_of_a_recipe_match_a_reformulation(context, name, monkeypatch):
    trainer = Trainer(run_config({"recipe": name, **GIVEN[name]}, TRAIN), context)
    # In double precision throughout: rounding alone moves AdamW where a gradient is small.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    trainer.model.double()
    trainer.model.register_forward_pre_hook(lambda _, images: (images[0].double(),))
    clip = copy.deepcopy(context.backbone.clip)
    weights = {
        key: p.detach().clone().requires_grad_() for key, p in trainer.model.trainable().items()
    }
    before = {key: p.detach().clone() for key, p in weights.items()}
    step = STEPS[name]()
    reports = list(trainer.epochs())
    for epoch in range(EPOCHS):
        rows = plain_batches(len(context.train), 18, seed=0, epoch=epoch)[0]
        images_BCHW = train_batch(
            context.train, rows.tolist(), trainer._transform, seed=0, epoch=epoch
        )
        total = LOSSES[name](context, clip, weights, images_BCHW.double(), rows)
        assert reports[epoch].losses["total"] == pytest.approx(total.item(), rel=1e-6)
        gradients = torch.autograd.grad(total, list(weights.values()))
        for (key, p), gradient in zip(weights.items(), gradients, strict=True):
            after = step(key, p.detach(), gradient, LRS[name][epoch])
            weights[key] = after.requires_grad_()
    for key, p in trainer.model.trainable().items():
        moved = (weights[key] - before[key]).detach()
        assert moved.abs().max() > 1e-4, key
        error = (p.detach() - before[key] - moved).abs().max()
        assert error <= 1e-6 * moved.abs().max(), key


class SgdStep:
    """SGD with momentum 0.9 and weight decay 5e-4."""

    def __init__(self):
        self.speed = {}

    def __call__(self, key, p, gradient, lr):
        self.speed[key] = 0.9 * self.speed.get(key, 0) + gradient + 5e-4 * p
        return p - lr * self.speed[key]


class AdamWStep:
    """AdamW with betas 0.9 and 0.999 and a decoupled weight decay of 0.01."""

    def __init__(self):
        self.moments = {}

    def __call__(self, key, p, gradient, lr):
        t, first, second = self.moments.get(key, (0, 0, 0))
        t, first = t + 1, 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        self.moments[key] = t, first, second
        mean, variance = first / (1 - 0.9**t), second / (1 - 0.999**t)
        return p - lr * 0.01 * p - lr * mean / (variance.sqrt() + 1e-8)


STEPS = {"paper": SgdStep, "authors": SgdStep, "stable": AdamWStep}


def paper_loss(context, clip, weights, images_BCHW, rows, gamma=30, lambda_=10, logit_factor=1):
    """Frozen captions; InstaPG's attention added to its block's prompts; MMD of the features."""
    learned = [weights[f"prompts.tokens.{i}"] for i in range(DEPTH)]

    def instance(patches):
        queries = norm(weights, "instapg.norm_prompts", learned[-1])
        return learned[-1] + answer(weights, queries, patches)

    features_BE = image_features(clip, learned, instance, images_BCHW)
    logits_BC = clip.logit_scale.exp() * features_BE @ context.text_CE.double().T
    logits_BC = logit_factor * logits_BC
    forget = lambda log_p: -log_p.mean(dim=-1)  # noqa: E731
    memorize, forgotten, head_BD = three_terms(
        context, weights, features_BE, logits_BC, rows, forget
    )
    squared = torch.stack([((features_BE - f) ** 2).sum(dim=1) for f in features_BE])
    mean = squared.detach().sum() / (18 * 17)
    kernel = sum(torch.exp(-squared / (scale * mean)) for scale in (0.25, 0.5, 1, 2, 4)) / 5
    domain_B = context.train.domain_N[rows]
    mmd = torch.stack([mmd_64(kernel, domain_B, a, b) for a, b in combinations(range(3), 2)]).mean()
    return memorize + forgotten + gamma * F.cross_entropy(head_BD, domain_B) - lambda_ * mmd


stable_loss = partial(paper_loss, gamma=0.5, lambda_=2, logit_factor=0.5)


def authors_loss(context, clip, weights, images_BCHW, rows):
    """Trained captions; InstaPG a whole block in place of its prompts; MMD of the head's logits."""
    learned = [weights[f"prompts.tokens.{i}"] for i in range(DEPTH)]

    def instance(patches):
        queries = norm(weights, "instapg.norm_prompts", learned[-1])
        x = queries + answer(weights, queries, patches)
        hidden = linear(weights, "instapg.expand", norm(weights, "instapg.norm_answer", x))
        return x + linear(weights, "instapg.reduce", hidden * torch.sigmoid(1.702 * hidden))

    features_BE = image_features(clip, learned, instance, images_BCHW)
    contexts = [weights["text_context.tokens"], weights["text_context.deeper.0"]]
    text_CE = text_features(context.backbone.tokenizer, clip, contexts)
    logits_BC = clip.logit_scale.exp() * features_BE @ text_CE.T
    entropy = lambda log_p: (log_p.exp() * (log_p.exp() + 1e-5).log()).sum(dim=-1)  # noqa: E731
    memorize, forgotten, head_BD = three_terms(
        context, weights, features_BE, logits_BC, rows, entropy
    )
    domain_B = context.train.domain_N[rows]
    squared = torch.stack([((head_BD - h) ** 2).sum(dim=1) for h in head_BD])
    pairs = []
    for a, b in combinations(range(3), 2):
        s = squared.detach()[domain_B == a][:, domain_B == b].sqrt().median()
        pairs.append(mmd_64(torch.exp(-squared / (2 * s**2)), domain_B, a, b))
    mmd = torch.stack(pairs).mean()
    return memorize + forgotten + 30 * F.cross_entropy(head_BD, domain_B) - 0.5 * mmd


LOSSES = {"paper": paper_loss, "authors": authors_loss, "stable": stable_loss}


def three_terms(context, weights, features_BE, logits_BC, rows, forget_of):
    class_B, domain_B = context.train.class_N[rows], context.train.domain_N[rows]
    forgotten_B = domain_B == context.domains.index("sketch")
    log_p_BC = logits_BC.log_softmax(dim=-1)
    memorize = F.nll_loss(log_p_BC[~forgotten_B], class_B[~forgotten_B])
    head_BD = linear(weights, "domain_head", features_BE)
    return memorize, forget_of(log_p_BC[forgotten_B]).mean(), head_BD


def mmd_64(kernel, domain_B, a, b):
    in_a, in_b = domain_B == a, domain_B == b
    within = kernel[in_a][:, in_a].mean() + kernel[in_b][:, in_b].mean()
    return within - 2 * kernel[in_a][:, in_b].mean()


def image_features(clip, learned, instance, images_BCHW):
    """The image tower with prompts behind the patches, the last ones made for the image."""
    visual = clip.visual
    x = visual.conv1(images_BCHW).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1)
    x = torch.cat([x + visual.positional_embedding, learned[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < DEPTH:
            x = x[:, : 1 + N_PATCHES]
            prompts = instance(x[:, 1:]) if i == DEPTH - 1 else learned[i]
            x = torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return F.normalize(visual.ln_post(x)[:, 0] @ visual.proj, dim=-1)


def text_features(tokenizer, clip, contexts):
    """Captions "X X X X class.", whose X are replaced ahead of each block."""
    tokens_CT = torch.cat([tokenizer([f"X X X X {name}."]) for name in CLASSES])
    x = clip.token_embedding(tokens_CT)
    x = torch.cat([x[:, :1], contexts[0].expand(3, -1, -1), x[:, 5:]], dim=1)
    x = x + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        if i > 0:
            x = torch.cat([x[:, :1], contexts[i].expand(3, -1, -1), x[:, 5:]], dim=1)
        x = block(x, attn_mask=clip.attn_mask.double())
    ends_CE = clip.ln_final(x)[torch.arange(3), tokens_CT.argmax(dim=-1)] @ clip.text_projection
    return F.normalize(ends_CE, dim=-1)


def answer(weights, queries, patches):
    layer = _Attention(weights)
    return attention_64(layer, queries, norm(weights, "instapg.norm_patches", patches))


class _Attention:
    """InstaPG's attention with the weights that are trained here; of the tiny tower's two heads."""

    num_heads = 2

    def __init__(self, weights):
        self.in_proj_weight = weights["instapg.attention.in_proj_weight"]
        self.in_proj_bias = weights["instapg.attention.in_proj_bias"]
        self.out_proj = _Linear(weights, "instapg.attention.out_proj")


class _Linear:
    def __init__(self, weights, name):
        self.weight, self.bias = weights[f"{name}.weight"], weights[f"{name}.bias"]


class _Norm(_Linear):
    eps = 1e-5


def norm(weights, name, x):
    return norm_64(_Norm(weights, name), x)


def linear(weights, name, x):
    layer = _Linear(weights, name)
    return x @ layer.weight.T + layer.bias
