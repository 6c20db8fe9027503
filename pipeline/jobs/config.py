"""The configuration of a search, and the parts of it that other commands have too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from adu import storage
from adu.config import StrictModel
from adu.context import ContextConfig
from adu.errors import UserError
from adu.evidence.proof import ProofConfig
from adu.methods import MethodConfig
from adu.methods.adu import AduConfig
from adu.training.config import TrainConfig
from pipeline.executors.resources import ResourcesConfig
from pipeline.names import parse_forget_name
from pipeline.studies.budget import BudgetConfig
from pipeline.studies.config import StudyConfig
from pipeline.studies.space import SpaceConfig
from pipeline.tracking.server import TrackingConfig

DEMO = "demo"

# In search.warm_start: the studies of the same search.
SIBLINGS = "siblings"

RESULTS = Path("results")

# What the choice of a search is compared with.
Compared = Literal["defaults", "paper", "baseline"]
COMPARED: tuple[Compared, ...] = ("defaults", "paper", "baseline")


def _split_domains(value: Any) -> Any:
    """One forget set as it is typed: ``cartoon+photo`` or ``cartoon,photo``."""
    return parse_forget_name(value) if isinstance(value, str) else value


def _one_or_many(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _as_proof(value: Any) -> Any:
    """``true`` alone: with all defaults."""
    text = str(value).lower()
    return {"true": {}, "false": None}.get(text, value)


ImagesPerS = Annotated[
    float | None,
    Field(
        gt=0,
        description="for --dry-run: training images a second of one worker, where it is to run "
        "(make bench-train measures it)",
    ),
]
ForgetSet = Annotated[tuple[str, ...], BeforeValidator(_split_domains)]


class ForgetSize(StrictModel):
    """All forget sets of some sizes."""

    size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_one_or_many)] = Field(
        (1,), min_length=1, description="domains in each forget set; several sizes: [1, 2]"
    )


class FinalConfig(StrictModel):
    """The final runs, on which the test split is read."""

    seeds: tuple[int, ...] = Field(
        (1, 2, 3),
        min_length=1,
        description="each trained configuration is run once with each; not the trials' own "
        "(train.seed, 0), by which it was chosen",
    )
    compare: tuple[Compared, ...] = Field(
        COMPARED,
        description="what the chosen configuration is compared with, beside the untouched model; "
        "each is a run more a seed",
    )

    def stages(self, from_paper: bool) -> tuple[str, ...]:
        """The stages that it is compared with.

        Args:
            from_paper: Whether the search starts from the paper's own configuration.
        """
        paper = "paper_defaults" if from_paper else "paper"
        named = {"defaults": "paper_defaults", "paper": paper, "baseline": "baseline"}
        return tuple(dict.fromkeys(named[name] for name in self.compare))


def check_output(output: str | None, tracking: TrackingConfig) -> None:
    """Sees whether an output, and what MLflow is told of it, outlasts the process.

    Raises:
        UserError: If it does not.
    """
    stays = output is not None and ("://" in output or Path(output).is_absolute())
    if "/working_dir_files/" in str(Path.cwd()) and not stays:
        raise UserError(
            f"output {output or 'unset'}: must be an absolute path or a URL in a Ray job, whose "
            "working directory is temporary"
        )
    if output and not storage.is_local(output) and tracking.named_uri is None:
        raise UserError(
            "tracking.uri: must be set where the output is a URL (MLflow's own SQLite file needs "
            "a disk that stays)"
        )


class SearchConfig(StrictModel):
    """Search for what makes a CLIP model forget whole domains and keep the others.

    For each forget set: search with Ray Tune and Optuna on validation images, then compare the
    best trial, the paper's defaults, the Baseline and the untouched model on test images.
    """

    name: str | None = Field(None, description="name of the search; unset: the manifest's")
    context: ContextConfig = ContextConfig()
    forget: ForgetSize | tuple[ForgetSet, ...] = Field(
        ForgetSize(), description="the forget sets: each domain,domain,... or all of some sizes"
    )
    method: MethodConfig = AduConfig()
    train: TrainConfig = TrainConfig()
    space: SpaceConfig = Field(
        min_length=1, description="what is searched: option path to range and default"
    )
    overrides: dict[str, SpaceConfig] = Field(
        {},
        description="changes of the space where a domain is forgotten, or for one forget set "
        "(domain+domain)",
    )
    search: StudyConfig = StudyConfig()
    budget: BudgetConfig = BudgetConfig()
    final: FinalConfig = FinalConfig()
    prove: Annotated[ProofConfig | None, BeforeValidator(_as_proof)] = Field(
        None,
        description="true: attack the best model and its references after the final runs, as "
        "prove.py does; or with these options",
    )
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    output: str | None = Field(
        None, description="folder or URL (s3://bucket/path); unset: results/NAME-DATE-TIME"
    )
    resume: bool = Field(False, description="go on with the search in the output")
    resume_or_start: bool = Field(
        False, description="go on with the search in the output, or start it if there is none"
    )
    dry_run: bool = Field(False, description="show what would be searched, and start nothing")
    images_per_s: ImagesPerS = None
    address: str | None = Field(
        None, description="HOST:PORT of a running Ray cluster; unset: RAY_ADDRESS, else a local one"
    )


SHORTCUTS = {
    "context.data.manifest": "manifest",
    "context.data.shots": "shots",
    "context.data.allow_uri": "allow-uri",
    "context.backbone.name": "backbone",
    "search.trials": "trials",
    "search.seed": "seed",
    "search.warm-start": "warm-start",
    "train.epochs": "epochs",
    "tracking.uri": "tracking-uri",
    "resources.workers-per-trial": "workers-per-trial",
    "resources.cpus-per-worker": "cpus-per-worker",
    "resources.gpus-per-worker": "gpus-per-worker",
}
