"""Ray Train's data-parallel trainer for PyTorch, as executors use it.

Apart from `pipeline.executors.pool`, because trial clients import that one and need none of it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.result import Result

# How long workers may take to leave a process group, before they are ended.
LEAVE_TIMEOUT_S = 30


class WarmTrainer(DataParallelTrainer):
    """A TorchTrainer that starts and ends with its workers alone.

    Ray 2.60 starts five more processes beside a run, each with imports of its own. Here

    - the controller runs in the thread that calls `fit`: it does little but ask, once a second,
      whether the workers are alive, and would not outlive its caller anyway;
    - there is no barrier for ``ray.train.report``: workers report to the executor's mailbox;
    - nobody tells the cluster's autoscaler what the run needs, for which Ray's controllers wait
      before they ask for workers: it sees their placement group all the same;
    - nobody removes the run's placement group if the controller dies, which Ray does at the end of
      the job (and who does it is waited for in vain for 12 s at the end of a run);
    - nobody hands out Ray datasets.

    And only the workers import torch, which a ``TorchTrainer`` does for the name of a class.

    Args:
        train_loop: What the workers do.
        on_failure: Called in the thread of `fit` when workers have died, or cannot be started,
            before others are asked for.
    """

    def __init__(self, train_loop: Any, on_failure: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(train_loop, backend_config=WarmTorchConfig(), **kwargs)
        self._on_failure = on_failure

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        superfluous = (PlacementGroupCleanerCallback, DatasetsCallback)
        kept = [each for each in callbacks if not isinstance(each, superfluous)]
        return [*kept, _NoDatasets(), _Failures(self._on_failure)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        policy = _FixedSize(arguments.pop("scaling_policy").scaling_config)
        controller = _Controller(scaling_policy=policy, **arguments)
        asyncio.run(controller.run())
        return controller.get_result()


class _FixedSize(FixedScalingPolicy):
    """As many workers as were asked for, by a placement group alone."""

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class _WorkerGroup(WorkerGroup):
    """Workers that need neither a controller that is an actor, nor a barrier."""

    def _init_train_context_on_workers(
        self, workers: list[Any], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        # It has been asked for just now, and is stopped on its way.
        ray.kill(sync_actor)
        calls = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[i] for name, values in train_context_args.items()},
            )
            for i, worker in enumerate(workers)
        ]
        ray.get(calls)
        self._decorate_worker_log_file_paths(workers)


class _Controller(TrainController):
    """Starts a group of workers, and another in its place when one is lost."""

    worker_group_cls = _WorkerGroup


@dataclass
class WarmTorchConfig(BackendConfig):
    """Ray's ``TorchConfig`` with its defaults, for a process without torch."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the workers up."""
        return WarmTorchBackend

    @property
    def train_func_context(self) -> type:
        """Entered around the workers' function."""
        return _OnItsDevice


class WarmTorchBackend(Backend):
    """Ray's backend for PyTorch; all that needs torch is called on the workers."""

    share_cuda_visible_devices: bool = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Makes a process group of the workers: NCCL where they have GPUs, Gloo elsewhere."""
        on_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        address, port = worker_group.execute_single(0, _free_address)
        calls = [
            worker_group.execute_single_async(
                rank,
                _join,
                backend="nccl" if on_gpus else "gloo",
                world_rank=rank,
                world_size=len(worker_group),
                address=address,
                port=port,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(calls)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Leaves the process group; workers that are dead or stuck are not waited for."""
        calls = worker_group.execute_async(_leave, destroy=len(worker_group) > 1)
        ray.wait(calls, num_returns=len(calls), timeout=LEAVE_TIMEOUT_S)


class _OnItsDevice:
    """Has a worker's GPU, if it has one, as its default."""

    def __enter__(self) -> None:
        import torch
        from ray.train.torch import get_device

        device = get_device()
        if isinstance(device, torch.device) and device.type == "cuda":
            torch.cuda.set_device(device)

    def __exit__(self, *_: object) -> None:
        pass


def _free_address() -> tuple[str, int]:
    from ray.train._internal.utils import get_address_and_port

    return get_address_and_port()


def _join(backend: str, world_rank: int, world_size: int, address: str, port: int) -> None:
    from ray.train.torch import config

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = address, str(port)
    config._set_torch_distributed_env_vars()
    config._setup_torch_process_group(backend, world_rank, world_size, "env://")


def _leave(destroy: bool) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy)


class _NoDatasets(WorkerGroupCallback):
    """Tells workers that there are no Ray datasets."""

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[None]]:
        return {"dataset_shard_provider": [None] * len(workers)}


class _Failures(ControllerCallback):
    """Tells that workers have failed."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        self._tell()
