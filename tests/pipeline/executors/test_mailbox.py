"""What an executor promises its callers, shown without Ray: the mailbox is plain asyncio."""

import asyncio

import pytest

from pipeline.executors.mailbox import MAX_RESTARTS, Command, Event, Mailbox


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario, 10))


def epoch(number):
    return {"epoch": number, "epochs": 3}


async def train(mailbox, group, command, first=1, last=3):
    """What a worker does with a command; returns the last epoch it has trained."""
    for number in range(first, last + 1):
        if not await mailbox.report(group, command.run_id, epoch(number), b"%d" % number):
            return number
    await mailbox.finish(group, command.run_id, None)
    return last


def test_a_run_waits_for_its_caller_after_every_epoch():
    async def scenario():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        worker = asyncio.create_task(train(mailbox, group, await mailbox.take(group)))
        assert (await mailbox.advance("a")).epoch == epoch(1)
        await asyncio.sleep(0.05)
        assert not mailbox._events, "the worker went on before the caller said so"
        assert (await mailbox.advance("a")).epoch == epoch(2)
        assert (await mailbox.advance("a")).epoch == epoch(3)
        assert (await mailbox.advance("a")).kind == "done"
        assert await worker == 3

    run(scenario())


def test_the_next_run_stops_the_one_before_after_the_epoch_it_has_reported():
    async def scenario():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        worker = asyncio.create_task(train(mailbox, group, await mailbox.take(group)))
        await mailbox.advance("a")
        await mailbox.post(Command("b", {}))
        assert await worker == 1
        assert (await mailbox.take(group)).run_id == "b"

    run(scenario())


@pytest.mark.parametrize("caller_has_decided", [True, False])
def test_restarted_workers_go_on_from_the_last_epoch(caller_has_decided):
    async def scenario():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        command = await mailbox.take(group)
        dying = asyncio.create_task(train(mailbox, group, command))
        assert (await mailbox.advance("a")).epoch == epoch(1)
        if caller_has_decided:
            waiting = asyncio.create_task(mailbox.advance("a"))
            assert (await waiting).epoch == epoch(2)
        done = 2 if caller_has_decided else 1

        group = await mailbox.enter()  # the old workers are dead, new ones are there
        await dying
        follower = asyncio.create_task(mailbox.advance("a"))
        command = await mailbox.take(group)
        assert (command.run_id, command.state) == ("a", b"%d" % done)
        worker = asyncio.create_task(train(mailbox, group, command, first=done + 1))
        assert (await follower).epoch == epoch(done + 1), "an epoch was lost or seen twice"
        while (await mailbox.advance("a")).kind == "epoch":
            pass
        assert await worker == 3

    run(scenario())


def test_a_run_that_keeps_killing_its_workers_fails():
    async def scenario():
        mailbox = Mailbox(1)
        await mailbox.post(Command("a", {}))
        for _ in range(MAX_RESTARTS + 1):
            assert (await mailbox.take(await mailbox.enter())).run_id == "a"
        await mailbox.enter()
        event = await mailbox.advance("a")
        assert event.kind == "failed"
        assert "a worker process died" in event.error

    run(scenario())


def test_an_exception_on_every_rank_fails_the_run_and_keeps_the_workers():
    async def scenario():
        mailbox = Mailbox(2)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        await mailbox.take(group)
        failure = Event("failed", error="boom")
        stays = await asyncio.gather(
            *(mailbox.fail(group, "a", rank, failure) for rank in range(2))
        )
        assert stays == [True, True]
        assert await mailbox.advance("a") == failure

    run(scenario())


def test_an_exception_on_one_rank_restarts_the_workers_and_not_the_run(monkeypatch):
    monkeypatch.setattr("pipeline.executors.mailbox.FAILURE_WINDOW_S", 0.05)

    async def scenario():
        mailbox = Mailbox(2)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        await mailbox.take(group)
        assert not await mailbox.fail(group, "a", 1, Event("failed", error="boom"))
        assert (await mailbox.take(await mailbox.enter())).run_id == "a"

    run(scenario())


def test_an_interrupt_ends_runs_at_once_and_lets_no_more_begin():
    async def scenario():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        await mailbox.take(group)
        waiting = asyncio.create_task(mailbox.advance("a"))
        await asyncio.sleep(0)
        await mailbox.interrupt()
        assert (await waiting).kind == "interrupted"
        await mailbox.post(Command("b", {}))
        assert (await mailbox.advance("b")).kind == "interrupted"

    run(scenario())


def test_a_run_that_is_withdrawn_stops_and_one_that_has_followed_it_does_not():
    async def scenario():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        worker = asyncio.create_task(train(mailbox, group, await mailbox.take(group)))
        await mailbox.advance("a")
        await mailbox.withdraw("a")
        assert await worker == 1
        await mailbox.post(Command("b", {}))
        await mailbox.withdraw("a")
        assert (await mailbox.take(group)).run_id == "b"

    run(scenario())


def test_the_ghost_of_a_dead_caller_takes_no_event_of_the_next_one():
    async def scenario():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(Command("a", {}))
        ghost = asyncio.create_task(mailbox.advance("a"))
        await asyncio.sleep(0)
        await mailbox.withdraw("a")
        await mailbox.post(Command("b", {}))
        worker = asyncio.create_task(train(mailbox, group, await mailbox.take(group), last=1))
        assert (await ghost).kind == "interrupted"
        assert (await mailbox.advance("b")).epoch == epoch(1)
        assert (await mailbox.advance("b")).kind == "done"
        await worker

    run(scenario())


def test_a_run_whose_node_is_lost_goes_on_elsewhere_with_all_its_epochs():
    async def scenario():
        lost, other = Mailbox(1), Mailbox(1)
        group = await lost.enter(("node",))
        assert (await lost.workers(0)).nodes == ("node",)
        await lost.post(Command("a", {}))
        dying = asyncio.create_task(train(lost, group, await lost.take(group)))
        assert (await lost.advance("a")).epoch == epoch(1)
        await lost.lose(group - 1)
        assert (await lost.workers(0)).phase == "ready", "a group that was gone before was lost"
        await lost.lose(group)
        event = await lost.advance("a")
        assert event.kind == "lost"
        assert await dying == 1
        # Nothing begins there before new workers have come.
        await lost.post(Command("b", {}))
        assert (await lost.advance("b")).kind == "lost"
        assert (await lost.workers(1)).phase == "starting"
        group = await lost.enter()
        await lost.post(Command("c", {}))
        assert (await lost.take(group)).run_id == "c"

        group = await other.enter()
        await other.post(event.command)
        follower = asyncio.create_task(other.advance("a"))
        taken = await other.take(group)
        assert (taken.state, taken.epochs) == (b"1", (epoch(1),))
        worker = asyncio.create_task(train(other, group, taken, first=2))
        assert (await follower).epoch == epoch(2)
        await other.lose(group)
        event = await other.advance("a")
        assert event.command.epochs == (epoch(1), epoch(2))
        await worker

    run(scenario())


def test_a_run_goes_on_from_its_savepoint_when_everything_was_killed(tmp_path):
    command = Command("a", {}, savepoint=str(tmp_path / "savepoints" / "0"))

    async def killed():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(command)
        worker = asyncio.create_task(train(mailbox, group, await mailbox.take(group)))
        assert (await mailbox.advance("a")).epoch == epoch(1)
        assert (await mailbox.advance("a")).epoch == epoch(2)
        worker.cancel()

    async def resumed():
        mailbox = Mailbox(1)
        group = await mailbox.enter()
        await mailbox.post(command)
        taking = asyncio.create_task(mailbox.take(group))
        event = await mailbox.advance("a")
        assert (event.epoch, event.before) == (epoch(2), (epoch(1),))
        await asyncio.sleep(0.05)
        assert not taking.done(), "the workers began before the caller had decided"
        waiting = asyncio.create_task(mailbox.advance("a"))
        taken = await taking
        assert taken.state == b"2"
        worker = asyncio.create_task(train(mailbox, group, taken, first=3))
        assert (await waiting).epoch == epoch(3)
        assert (await mailbox.advance("a")).kind == "done"
        assert await worker == 3

    run(killed())
    run(resumed())
