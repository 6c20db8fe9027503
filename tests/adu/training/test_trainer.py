"""The training loop: schedule, determinism, exact resume, independence of the number of workers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adu.config import parse_config
from adu.data.decoded import balanced_batches, plain_batches
from adu.distributed import rank_slice
from adu.errors import UserError
from adu.methods import METHODS
from adu.methods.adu import AduConfig
from adu.methods.baseline import BaselineConfig
from adu.methods.bbf import BbfConfig
from adu.methods.clipfit import ClipFitConfig
from adu.methods.coop import CoOpConfig
from adu.methods.distilled import DistilledConfig
from adu.methods.lp_plus_plus import LpPlusPlusConfig
from adu.methods.maple import MaPLeConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.checkpoint import checkpoint_bytes, load_checkpoint
from adu.training.config import RunConfig, TrainConfig
from adu.training.optimizer import learning_rate
from adu.training.trainer import Trainer, TrainingDivergedError
from tests.tiny import CLASSES, DOMAINS, tiny_context, tiny_teacher


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def context(folder):
    return tiny_context(folder)


def adu_run(**train):
    method = AduConfig(n_ctx=2, gamma=1.0, **{"lambda": 1.0})
    return RunConfig(
        forget=("sketch",),
        method=method,
        train=TrainConfig(**{"epochs": 3, "batch_size": 9, "lr": 0.05, **train}),
    )


def final_weights(trainer):
    return list(trainer.epochs()), trainer.state()["weights"]


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_learning_rate_is_dassls():
    """Constant warm-up, then torch's cosine over the whole run's length, begun after it."""
    config = TrainConfig(epochs=10, lr=0.1, warmup="constant", warmup_epochs=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    expected = [1e-5, 1e-5]
    for _ in range(8):
        expected.append(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()
    assert [learning_rate(config, epoch) for epoch in range(10)] == pytest.approx(expected)
    assert expected[2] == 0.1


def test_a_linear_warm_up_rises_with_every_step_to_the_full_rate(context):
    config = TrainConfig(epochs=4, lr=0.1, warmup_epochs=2)
    quarters = [learning_rate(config, epoch, share) for epoch in (0, 1) for share in (0.5, 1)]
    assert quarters == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert learning_rate(config, 2, 0.5) == 0.1
    assert learning_rate(TrainConfig(epochs=1, lr=0.1, warmup_epochs=2), 0, 1.0) == 0.1
    # Two steps of plain gradient descent, the first at half the rate.
    run = adu_run(epochs=1, momentum=0, weight_decay=0, lr=0.1)
    trainer = Trainer(run, context)
    head, seen = trainer.model.domain_head.weight, []
    trainer.model.before_step = lambda _: seen.extend([head.detach().clone(), head.grad.clone()])
    list(trainer.epochs())
    first, gradient, second, _ = seen
    torch.testing.assert_close(second, first - 0.05 * gradient)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"epochs": 2, "warmup": "constant"}, r"below epochs \(2\) where warm-up is constant"),
        ({"epochs": 3, "warmup": "constant", "warmup_epochs": 3}, r"below epochs \(3\)"),
    ],
)
def test_a_warm_up_that_leaves_nothing_to_train_is_refused(options, allowed):
    with pytest.raises(UserError, match=f"train.warmup_epochs = .: must be {allowed}"):
        parse_config(RunConfig, {"forget": ["sketch"], "train": options}, "run.yaml")


def test_reports_carry_every_loss_term_and_scores(context):
    reports, _ = final_weights(Trainer(adu_run(), context))
    assert [r.epoch for r in reports] == [1, 2, 3]
    assert reports[0].losses.keys() == {"total", "memorize", "forget", "domain_ce", "mmd"}
    assert all(0 <= r.val.h <= 1 for r in reports)


def test_training_lowers_the_loss(context):
    reports, _ = final_weights(Trainer(adu_run(epochs=12, lr=0.1, warmup_epochs=0), context))
    assert reports[-1].losses["total"] < reports[0].losses["total"]


def test_same_seed_gives_the_same_bits_whatever_ran_before(context):
    _, first = final_weights(Trainer(adu_run(), context))
    torch.manual_seed(123)
    final_weights(Trainer(adu_run(seed=5), context))
    _, second = final_weights(Trainer(adu_run(), context))
    assert_same_bits(first, second)


def test_a_constant_schedule_keeps_the_rate_after_warm_up():
    config = TrainConfig(epochs=10, lr=0.1, warmup="constant", warmup_epochs=1, schedule="constant")
    assert [learning_rate(config, epoch) for epoch in range(3)] == [1e-5, 0.1, 0.1]


def test_adamw_takes_the_step_of_its_formula(context):
    """Two steps in float64 (Loshchilov and Hutter, ICLR 2019, algorithm 2)."""
    lr, decay, beta1, beta2 = 0.01, 0.1, 0.8, 0.999
    options = {"optimizer": "adamw", "lr": lr, "weight_decay": decay, "momentum": beta1}
    trainer = Trainer(adu_run(epochs=1, warmup_epochs=0, **options), context)
    head, seen = trainer.model.domain_head.weight, []
    trainer.model.before_step = lambda _: seen.append((head.detach().clone(), head.grad.clone()))
    list(trainer.epochs())
    weight, first, second = seen[0][0].double(), torch.zeros(()), torch.zeros(())
    for t, (before, gradient) in enumerate(seen, start=1):
        torch.testing.assert_close(before.double(), weight, rtol=0, atol=1e-6)
        first = beta1 * first + (1 - beta1) * gradient.double()
        second = beta2 * second + (1 - beta2) * gradient.double() ** 2
        step = first / (1 - beta1**t) / ((second / (1 - beta2**t)).sqrt() + 1e-8)
        weight = weight * (1 - lr * decay) - lr * step
    assert len(seen) > 1


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.5}, {"sampling": "plain"}, {"optimizer": "adamw"}], ids=str
)
def test_a_stopped_run_goes_on_to_the_same_bits(context, stop_after, options):
    _, undisturbed = final_weights(Trainer(adu_run(**options), context))
    stopped = Trainer(adu_run(**options), context)
    for report in stopped.epochs():
        if report.epoch == stop_after:
            break
    resumed = Trainer(adu_run(**options), context)
    resumed.load_state(stopped.state())
    reports, weights = final_weights(resumed)
    assert [r.epoch for r in reports] == list(range(stop_after + 1, 4))
    assert_same_bits(undisturbed, weights)


def test_the_average_of_the_weights_is_what_ends_up_in_the_model(context):
    """One step an epoch: the moving average can be told from the weights of every epoch."""
    options = {"batch_size": 18, "ema_decay": 0.75}
    plain = Trainer(adu_run(**options | {"ema_decay": None}), context)
    name, parameter = next(iter(plain.model.trainable().items()))
    average = parameter.detach().double().clone()
    for _ in plain.epochs():
        average = 0.75 * average + 0.25 * parameter.detach().double()
    _, weights = final_weights(Trainer(adu_run(**options), context))
    torch.testing.assert_close(weights[name].double(), average, atol=1e-6, rtol=0)


def one_step(context, **options):
    """The report of a step that changes next to nothing, and the scores in training and testing."""
    run = adu_run(epochs=1, batch_size=18, warmup_epochs=0, lr=1e-9, **options)
    trainer, outputs = Trainer(run, context), []
    trainer.model.register_forward_hook(lambda *call: outputs.append(call[-1]))
    (report,) = trainer.epochs()
    return report, outputs[0].logits_BC.detach().double(), outputs[-1].logits_BC


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_logit_factor_softens_predictions_in_training_alone(context, factor):
    report, logits_BC, tested_BC = one_step(context, logit_factor=factor)
    rows = balanced_batches(context.train.domain_N, 18, seed=0, epoch=0)[0]
    class_B, forget_B = context.train.class_N[rows], context.train.domain_N[rows] == 2
    log_p_BC = (factor * logits_BC).log_softmax(dim=-1)
    memorize = -log_p_BC[~forget_B].gather(1, class_B[~forget_B, None]).mean()
    assert report.losses["memorize"] == pytest.approx(memorize.item(), rel=1e-4)
    assert report.losses["forget"] == pytest.approx(-log_p_BC[forget_B].mean().item(), rel=1e-4)
    torch.testing.assert_close(tested_BC, one_step(context)[2])


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(context):
    run = adu_run(epochs=1, batch_size=18, warmup_epochs=0, momentum=0, weight_decay=0, lr=1.0)
    clipped = run.model_copy(update={"train": run.train.model_copy(update={"grad_clip": 1e-3})})
    trainer = Trainer(clipped, context)
    before = [p.detach().clone() for p in trainer.model.trainable().values()]
    list(trainer.epochs())
    after = trainer.model.trainable().values()
    change = sum((a - b).double().square().sum() for a, b in zip(after, before, strict=True))
    assert change.sqrt().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("n", range(13))
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_workers_shares_are_balanced_and_make_up_the_whole(n, world_size):
    shares = [list(range(n))[rank_slice(n, rank, world_size)] for rank in range(world_size)]
    assert sum(shares, []) == list(range(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_plain_sampling_takes_every_image_once(context):
    batches = plain_batches(11, 4, seed=0, epoch=1)
    assert [len(b) for b in batches] == [4, 4, 3]
    assert sorted(torch.cat(batches).tolist()) == list(range(11))
    assert not torch.equal(batches[0], plain_batches(11, 4, seed=0, epoch=2)[0])


@pytest.mark.parametrize(
    "name", [name for name in METHODS if name not in ("zero_shot", "null_space")]
)
def test_every_method_trains_and_its_state_and_checkpoint_come_back(context, tmp_path, name):
    options = {"n_ctx": 2} if name in ("coop", "maple", "bbf") else {}
    options |= {"teacher": tiny_teacher(context)} if name == "distilled" else {}
    values = {"forget": ["sketch"], "method": {"name": name, **options}}
    run = RunConfig.model_validate(values | {"train": {"epochs": 2, "batch_size": 9, "lr": 0.01}})
    reports, weights = final_weights(Trainer(run, context))
    assert len(reports) == 2
    stopped = Trainer(run, context)
    next(stopped.epochs())
    resumed = Trainer(run, context)
    resumed.load_state(stopped.state())
    assert_same_bits(weights, final_weights(resumed)[1])
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(checkpoint_bytes(resumed.model, run, context))
    loaded = load_checkpoint(str(file), context)[0].deployed()
    assert_same_bits({key: weights[key] for key in resumed.model.deployed()}, dict(loaded))


def test_zero_shot_has_no_epochs(context):
    run = RunConfig(forget=("sketch",), method=ZeroShotConfig())
    assert list(Trainer(run, context).epochs()) == []


def test_divergence_names_epoch_and_term(context):
    run = adu_run(warmup_epochs=0)
    trainer = Trainer(run, context)
    with torch.no_grad():
        trainer.model.domain_head.weight.fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="'domain_ce' is not finite in epoch 1"):
        list(trainer.epochs())


def test_bf16_trains_close_to_fp32(context):
    fp32, _ = final_weights(Trainer(adu_run(), context))
    bf16, _ = final_weights(Trainer(adu_run(precision="bf16"), context))
    assert bf16[-1].losses["memorize"] == pytest.approx(fp32[-1].losses["memorize"], rel=0.05)


def test_bf16_is_the_precision_of_steps_validation_and_tests(context, monkeypatch):
    trainer = Trainer(adu_run(epochs=1, precision="bf16"), context)
    seen = []
    forward = trainer.model.forward
    monkeypatch.setattr(trainer.model, "forward", lambda images_BCHW: look(images_BCHW))

    def look(images_BCHW):
        seen.append((trainer.model.training, torch.is_autocast_enabled("cpu")))
        return forward(images_BCHW)

    list(trainer.epochs())
    assert set(seen) == {(True, True), (False, True)}
    seen.clear()
    assert trainer.test().scores.h > 0
    assert set(seen) == {(False, True)}


def worker(rank, world_size, folder, port, runs, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    # This process is the worker's own.
    torch.Tensor.float = torch.Tensor.double
    torch.set_default_dtype(torch.float64)
    context = in_double_precision(load_again(folder))
    for i, run in enumerate(runs):
        reports, weights = final_weights(doubled(Trainer(run, context)))
        results[rank, i] = (
            [(r.losses, r.val) for r in reports],
            {k: v.numpy() for k, v in weights.items()},
        )
    dist.destroy_process_group()


def in_double_precision(context):
    """Sums in another order then differ by nothing that steps could make more of."""
    context.backbone.clip.double()
    return replace(context, text_CE=context.text_CE.double())


def doubled(trainer):
    trainer.model.double()
    trainer.model.register_forward_pre_hook(lambda _, images: (images[0].double(),))
    return trainer


def load_again(folder):
    from adu.context import ContextConfig, load_context
    from adu.data.decoded import DataConfig
    from adu.models.backbone import BackboneConfig

    config = ContextConfig(
        backbone=BackboneConfig(name=str(folder / "model")),
        data=DataConfig(manifest=str(folder / "manifest"), shots=2, val_shots=1),
    )
    return load_context(config, torch.device("cpu"))


METHODS_TO_SHARE_OUT = [
    BaselineConfig(n_ctx=2),
    AduConfig(n_ctx=2, gamma=1.0, **{"lambda": 1.0}),
    AduConfig(n_ctx=2, recipe="authors", gamma=1.0),
    MaPLeConfig(depth=2),
    CoOpConfig(n_ctx=4),
    ClipFitConfig(),
    BbfConfig(n_ctx=2, population=4),
    LpPlusPlusConfig(iterations=6),
]


@pytest.mark.parametrize("n_workers", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_many_workers_train_as_one_on_the_same_global_batch(
    folder, context, free_port, n_workers, monkeypatch, request
):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    request.addfinalizer(partial(torch.set_default_dtype, torch.float32))
    torch.set_default_dtype(torch.float64)
    context = in_double_precision(load_again(folder))
    # Shares of batches of 9 differ in size; of 16 images, the last batch has 2 of 18 left, which
    # leaves half of four workers without any. Neither must matter.
    methods = [*METHODS_TO_SHARE_OUT, DistilledConfig(teacher=tiny_teacher(context))]
    runs = [adu_run().model_copy(update={"method": method}) for method in methods]
    small = adu_run(sampling="plain", batch_size=16)
    runs += [small.model_copy(update={"method": method}) for method in methods]
    alone = [final_weights(doubled(Trainer(run, context))) for run in runs]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, (n_workers, folder, free_port, runs, results), nprocs=n_workers)
        shared_out = dict(results)
    assert len(shared_out) == n_workers * len(runs)
    for (_, i), (reports, weights) in shared_out.items():
        alone_reports, alone_weights = alone[i]
        for (losses, val), report in zip(reports, alone_reports, strict=True):
            assert losses == pytest.approx(report.losses, rel=1e-8, abs=1e-8)
            assert val == report.val
        for name, weight in weights.items():
            torch.testing.assert_close(
                torch.from_numpy(weight), alone_weights[name], atol=1e-8, rtol=0, msg=name
            )


def test_all_validation_images_are_looked_at_where_a_decision_hangs_on_it(tmp_path):
    context = tiny_context(tmp_path, shots=2, val_shots="all", quick_val_shots=1)
    run = RunConfig(forget=("sketch",), train=TrainConfig(epochs=4, batch_size=6))
    n_cells = len(DOMAINS) * len(CLASSES)

    def looked_at(deciding):
        reports = Trainer(run, context, deciding).epochs()
        return [sum(report.val.n_by_domain.values()) // n_cells for report in reports]

    n_all = len(context.val) // n_cells
    assert n_all > 1
    assert looked_at((2,)) == [1, n_all, 1, n_all]
    # A library's user decides after every epoch.
    assert looked_at(None) == [n_all] * 4
