"""The training loop: schedule, determinism, exact resume, independence of the number of workers."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adu.methods.adu import AduConfig
from adu.methods.baseline import BaselineConfig
from adu.methods.zero_shot import ZeroShotConfig
from adu.trainer import RunConfig, TrainConfig, Trainer, TrainingDivergedError, learning_rate
from tests.tiny import tiny_context


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


def test_learning_rate_warms_up_then_follows_the_cosine():
    config = TrainConfig(epochs=10, lr=0.1, warmup_epochs=1, warmup_lr=1e-5)
    assert learning_rate(config, 0) == 1e-5
    for epoch in range(1, 10):
        expected = 0.1 * math.cos(math.pi * epoch / 20) ** 2
        assert learning_rate(config, epoch) == pytest.approx(expected)


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


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(context, stop_after):
    _, undisturbed = final_weights(Trainer(adu_run(), context))
    stopped = Trainer(adu_run(), context)
    for report in stopped.epochs():
        if report.epoch == stop_after:
            break
    resumed = Trainer(adu_run(), context)
    resumed.load_state(stopped.state())
    reports, weights = final_weights(resumed)
    assert [r.epoch for r in reports] == list(range(stop_after + 1, 4))
    assert_same_bits(undisturbed, weights)


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


def worker(rank, world_size, folder, port, run, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    trainer = Trainer(run, load_again(folder))
    reports, weights = final_weights(trainer)
    results[rank] = (
        [(r.losses, r.val) for r in reports],
        {k: v.numpy() for k, v in weights.items()},
    )
    dist.destroy_process_group()


def load_again(folder):
    from adu.backbone import BackboneConfig
    from adu.context import ContextConfig, load_context
    from adu.data import DataConfig

    config = ContextConfig(
        backbone=BackboneConfig(name=str(folder / "model")),
        data=DataConfig(manifest=str(folder / "manifest"), shots=2, val_shots=1),
    )
    return load_context(config, torch.device("cpu"))


@pytest.mark.parametrize(
    "method", [BaselineConfig(n_ctx=2), AduConfig(n_ctx=2, gamma=1.0, **{"lambda": 1.0})], ids=str
)
def test_two_workers_train_as_one_on_the_same_global_batch(context, folder, free_port, method):
    # A batch of 9 over 2 workers: their shares differ in size, which must not matter either.
    run = adu_run().model_copy(update={"method": method})
    alone_reports, alone = final_weights(Trainer(run, context))
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(worker, (2, folder, free_port, run, results), nprocs=2)
        by_rank = dict(results)
    for reports, weights in by_rank.values():
        for (losses, val), report in zip(reports, alone_reports, strict=True):
            assert losses == pytest.approx(report.losses, abs=1e-5)
            assert val == report.val
        for name, weight in weights.items():
            torch.testing.assert_close(
                torch.from_numpy(weight), alone[name], atol=1e-5, rtol=0, msg=name
            )
