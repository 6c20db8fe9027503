"""The attacks, each one short file, behind one interface and the registry below.

A new attack is a file with an `Attack`, and a field of `BatteryConfig`.
"""

from __future__ import annotations

from pydantic import Field

from adu.config import StrictModel
from adu.evidence.attacks.asked import Asked
from adu.evidence.attacks.base import Attack, Figures
from adu.evidence.attacks.benign import Benign
from adu.evidence.attacks.collateral import Collateral
from adu.evidence.attacks.inputs import Inputs
from adu.evidence.attacks.membership import Membership
from adu.evidence.attacks.novel import Novel
from adu.evidence.attacks.precision import Precision
from adu.evidence.attacks.probes import Probes
from adu.evidence.attacks.pruning import Pruning
from adu.evidence.attacks.relearning import Relearning
from adu.evidence.attacks.removal import Removal
from adu.evidence.attacks.soft_prompt import SoftPrompt
from adu.evidence.attacks.words import Words

__all__ = ["Attack", "BatteryConfig", "Figures"]


class BatteryConfig(StrictModel):
    """All attacks, in the order in which they are run, with their options."""

    asked: Asked = Field(Asked(), description=Asked.asks)
    removal: Removal = Field(Removal(), description=Removal.asks)
    words: Words = Field(Words(), description=Words.asks)
    soft_prompt: SoftPrompt = Field(SoftPrompt(), description=SoftPrompt.asks)
    inputs: Inputs = Field(Inputs(), description=Inputs.asks)
    precision: Precision = Field(Precision(), description=Precision.asks)
    pruning: Pruning = Field(Pruning(), description=Pruning.asks)
    probes: Probes = Field(Probes(), description=Probes.asks)
    relearning: Relearning = Field(Relearning(), description=Relearning.asks)
    benign: Benign = Field(Benign(), description=Benign.asks)
    membership: Membership = Field(Membership(), description=Membership.asks)
    novel: Novel = Field(Novel(), description=Novel.asks)
    collateral: Collateral = Field(Collateral(), description=Collateral.asks)

    def attacks(self) -> dict[str, Attack]:
        """The attacks by name."""
        return {name: getattr(self, name) for name in type(self).model_fields}

    def quick(self) -> BatteryConfig:
        """A battery that takes a fifth of the time; what was set by hand stays as it is."""
        shorter = {}
        for name, attack in self.attacks().items():
            ours = {key: v for key, v in attack.quick.items() if key not in attack.model_fields_set}
            shorter[name] = attack.model_copy(update=ours)
        return self.model_copy(update=shorter)
