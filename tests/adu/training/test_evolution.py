"""CMA-ES finds a minimum, and a replayed history leads on to the same bits."""

import torch

from adu.training.evolution import Evolution

GOAL = torch.tensor([1.0, -2.0, 0.5])


def search(seed=0):
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]

    def losses():
        distance = (torch.cat(parameters) - GOAL).square().sum()
        return {"total": distance, "half": distance / 2}

    return Evolution(parameters, sigma=0.5, population=8, seed=seed), parameters, losses


def test_it_finds_the_minimum():
    evolution, parameters, losses = search()
    terms = [evolution.step(losses) for _ in range(60)]
    torch.testing.assert_close(torch.cat(list(parameters)).detach(), GOAL, atol=1e-2, rtol=0)
    assert terms[-1]["total"] < terms[0]["total"]
    torch.testing.assert_close(terms[0]["half"], terms[0]["total"] / 2)


def test_a_replayed_history_goes_on_to_the_same_bits():
    undisturbed, expected, losses = search()
    for _ in range(6):
        undisturbed.step(losses)
    stopped, _, losses = search()
    for _ in range(3):
        stopped.step(losses)
    resumed, found, losses = search()
    resumed.replay(stopped.history)
    for _ in range(3):
        resumed.step(losses)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(resumed.history, undisturbed.history)


def test_a_candidate_without_a_finite_loss_is_passed_over():
    evolution, parameters, _ = search()

    def losses():
        total = (torch.cat(parameters) - GOAL).square().sum()
        return {"total": torch.where(parameters[0][0] < 0, torch.nan, total)}

    for _ in range(60):
        terms = evolution.step(losses)
        # What is reported is of the others, so that the run goes on.
        assert terms["total"].isfinite()
    assert parameters[0][0] > 0.9


def test_a_generation_without_any_finite_loss_says_so():
    evolution, parameters, _ = search()
    assert evolution.step(lambda: {"total": parameters[0].sum() * torch.nan})["total"].isnan()
