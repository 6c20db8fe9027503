"""The distance of a model that is still to be chosen: no test image is looked at.

As in a proof (`adu.evidence.verdict`), it is the mean of the residuals between a model that knows
nothing (0) and the untouched one (1), but of the attacks that train nothing of the model and that
do not say the same of every configuration. Who attacks has the shots; what is asked about are the
validation images.
"""

from __future__ import annotations

from functools import cached_property

from adu.context import Context
from adu.evidence.attacks import BatteryConfig
from adu.evidence.bench import Outcome
from adu.evidence.references import KNOWS_NOTHING, UNTOUCHED, knows_nothing, untouched
from adu.evidence.subject import Material, Pictures, Subject, everything
from adu.evidence.verdict import distance_of
from adu.methods import Method
from adu.methods.zero_shot import ZeroShotConfig
from adu.training.config import RunConfig

ATTACKS = ("asked", "words", "inputs", "precision", "pruning", "probes")

MODEL = "model"


class ValidationMaterial(Material):
    """Images for a model that is still to be chosen."""

    @cached_property
    def members(self) -> Pictures:
        """What the model was trained on."""
        return everything(self.context.train_views)

    @cached_property
    def fresh(self) -> Pictures:
        """None: what it was not trained on, it is asked about."""
        return Pictures(self.context.val, [])

    @cached_property
    def pool(self) -> Pictures:
        """What an attacker has."""
        return self.members

    @cached_property
    def test(self) -> Pictures:
        """Validation images."""
        return everything(self.context.val)

    @cached_property
    def novel(self) -> None:
        """Nobody asks about other classes."""
        return None


def distance(model: Method, run: RunConfig, context: Context) -> float:
    """How much of the forget domains is left in a model, from 0 to 1.

    Args:
        model: The model.
        run: What trained it.
        context: What it was trained on; both ends of the scale are remembered there.
    """
    material = ValidationMaterial(context, context.manifest, run.forget)
    key = f"ends of the distance, forget {run.forget}"
    if key not in context.remembered:
        task = context.task(run.forget)
        bare = run.model_copy(update={"method": ZeroShotConfig()})
        ends = {
            UNTOUCHED: untouched(context.backbone, task),
            KNOWS_NOTHING: knows_nothing(context.backbone, task, seed=0),
        }
        context.remembered[key] = [
            outcome
            for label, end in ends.items()
            for outcome in _attacked(Subject(label, 0, bare, end, material))
        ]
    own = _attacked(Subject(MODEL, run.train.seed, run, model, material))
    return distance_of([*context.remembered[key], *own], MODEL)


def _attacked(subject: Subject) -> list[Outcome]:
    battery = BatteryConfig().quick().attacks()
    return [
        Outcome(subject.label, subject.seed, name, battery[name].run(subject), 0.0)
        for name in ATTACKS
    ]
