"""What the stack knows of a server: how to start it, and how to see whether it works."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from typing import ClassVar

from infra.stack.secret_files import Secrets
from infra.stack.settings import Settings

# Left out of the servers' environment: what is set in this shell is none of theirs.
FOREIGN = ("AWS_", "MLFLOW_", "PG", "RAY_A", "OPTUNA_")

CHECK_TIMEOUT_S = 5


class Server(ABC):
    """One server.

    Args:
        settings: The stack's.
        secrets: The stack's.

    Attributes:
        name: What people call it.
        needs: Names of the servers that must work before it starts.
        stop_signal: Asks it to end.
        starts: How often it is started if it ends before it works.
    """

    name: str
    needs: ClassVar[tuple[str, ...]] = ()
    stop_signal: ClassVar[int] = signal.SIGTERM
    starts: ClassVar[int] = 1

    def __init__(self, settings: Settings, secrets: Secrets) -> None:
        self.settings = settings
        self.secrets = secrets

    @property
    @abstractmethod
    def address(self) -> str:
        """Where clients find it."""

    @property
    def ports(self) -> dict[str, int]:
        """The ports that it takes, by the flag that sets them."""
        return {}

    def prepare(self) -> None:  # noqa: B027 (most have nothing to do)
        """Makes ready what it needs on disk.

        Raises:
            UserError: If something is missing on this machine.
        """

    @abstractmethod
    def command(self) -> list[str]:
        """The command that runs it."""

    def environment(self) -> dict[str, str]:
        """What it has in its environment besides `base_environment`."""
        return {}

    @abstractmethod
    def check(self) -> str:
        """Asks it something that only a working server answers.

        Returns:
            A word about it.

        Raises:
            Exception: If it does not work; the message says why.
        """

    def set_up(self) -> None:  # noqa: B027
        """Gives a server that works what clients expect in it: buckets, roles, users."""


def base_environment() -> dict[str, str]:
    """The environment that every server gets."""
    return {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
