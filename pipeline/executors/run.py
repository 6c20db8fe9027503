"""What an executor is asked to run, and what it tells of it.

Plain values, and no import of torch: every process that an executor is made of reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# What a study searches with; any other stage is a fixed run's.
TRIAL = "trial"

# A trial's configuration with another seed.
AGAIN = "again"

# The untouched model on the validation images.
REFERENCE = "reference"

# A model that is attacked.
PROOF = "proof"


@dataclass(frozen=True)
class Attacked:
    """A model of a proof, and what is tried on it; see `adu.evidence.proof`.

    Attributes:
        label: What it is called.
        seed: Which of its runs.
        config: A `ProofConfig` as plain values, written out.
        trained: Outcome files of what was trained for it, by label.
    """

    label: str
    seed: int
    config: Mapping[str, Any]
    trained: Mapping[str, str]


@dataclass(frozen=True)
class Run:
    """One training run: a trial of a study, or a configuration that was known beforehand.

    Attributes:
        study: The study, table row or command that it belongs to.
        name: Unique within the study: a trial's number, or the stage and seed.
        stage: What it stands for: ``trial``, or ``best``, ``zero_shot``, a row's label.
        config: Its `RunConfig` as plain values.
        context: Model and images, a `ContextConfig` as plain values.
        place: File or URL, without suffix, of what is kept of it.
        tested: Whether it is evaluated on the test split at its end, and leaves an outcome.
        number: A trial's number in Optuna.
        params: What was searched, by option path.
        deciding: Epochs after which something is decided by its validation scores, beside the last.
        attacked: A model that it attacks in place of training one.
        distance: Whether it is measured after the last epoch; see `adu.evidence.distance`.
    """

    study: str
    name: str
    stage: str
    config: Mapping[str, Any]
    context: Mapping[str, Any]
    place: str
    tested: bool = False
    number: int = -1
    params: Mapping[str, Any] = field(default_factory=dict)
    deciding: tuple[int, ...] = ()
    attacked: Attacked | None = None
    distance: bool = False

    @property
    def key(self) -> str:
        """Unique within a job."""
        return f"{self.study}/{self.name}"

    @property
    def epochs(self) -> int:
        """How many it is asked to train."""
        n_epochs: int = self.config["train"]["epochs"]
        return n_epochs

    @property
    def state_file(self) -> str:
        """Where its last epoch is kept, from which it goes on."""
        return f"{self.place}.state"

    @property
    def outcome_file(self) -> str:
        """Where it leaves what came of it."""
        return f"{self.place}.npz"


@dataclass(frozen=True)
class Event:
    """What has become of a run, or of the executor that has it.

    Attributes:
        kind: ``epoch`` and ``attack`` are followed by more. After ``done`` and ``failed`` the run
            is over. After ``broken`` and ``lost`` the executor is, and the run goes on with
            another one.
        epoch: The epoch's report as plain values (kind ``epoch``).
        attacks: How many are done, and of how many (kind ``attack``).
        before: The reports of the epochs before it, if the run has just gone on from its state.
        error: Why, in one line.
        user_error: Whether that is a mistake of the user's.
    """

    kind: Literal["epoch", "attack", "done", "failed", "broken", "lost"]
    epoch: Mapping[str, Any] | None = None
    attacks: tuple[int, int] | None = None
    before: tuple[Mapping[str, Any], ...] = ()
    error: str = ""
    user_error: bool = False


def one_line(error: BaseException) -> str:
    """An exception's type and message without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
