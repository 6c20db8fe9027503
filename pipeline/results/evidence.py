"""What a proof comes to: the verdict, its figures, and a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from adu.data.manifest import Manifest
from adu.evidence.attacks import Attack
from adu.evidence.bench import Outcome
from adu.evidence.proof import ProofConfig
from adu.evidence.references import UNTOUCHED
from adu.evidence.verdict import Estimate, Standing, standings, verdict
from pipeline.names import forget_name


@dataclass(frozen=True)
class Evidence:
    """All that the page shows.

    Attributes:
        label: The model in question.
        verdict: The sentence at the top.
        standings: What is left of the domain in each model, the one in question first.
        outcomes: What was found.
        attacks: The attacks, by name.
        facts: What was asked of what.
        quick: Whether less was tried than could have been.
    """

    label: str
    verdict: str
    standings: Mapping[str, Standing]
    outcomes: Sequence[Outcome]
    attacks: Mapping[str, Attack]
    facts: Mapping[str, str]
    quick: bool

    @property
    def counted(self) -> list[str]:
        """Names of the attacks that the distance is made of."""
        return list(self.standings[self.label].by_attack)


def make_evidence(
    label: str, outcomes: Sequence[Outcome], config: ProofConfig, facts: Mapping[str, str]
) -> Evidence:
    """What a battery has come to.

    Args:
        label: The model in question.
        outcomes: All that was found.
        config: What it was attacked with, written out.
        facts: What was asked of what; see `proof_facts`.
    """
    attacks, standing = config.battery.attacks(), standings(outcomes)
    titles = {name: attack.title for name, attack in attacks.items()}
    sentence = verdict(standing[label], standing[UNTOUCHED], titles)
    others = [name for name in standing if name != label]
    ordered = {name: standing[name] for name in (label, *others)}
    return Evidence(label, sentence, ordered, tuple(outcomes), attacks, facts, config.quick)


def proof_facts(
    manifest: Manifest,
    forget: Sequence[str],
    backbone: str,
    models: str,
    config: ProofConfig,
    outcomes: Sequence[Outcome],
) -> dict[str, str]:
    """What was asked of what, as the page says it.

    Args:
        manifest: The images, with the classes and domains that were trained on.
        forget: What was to be forgotten.
        backbone: The frozen model's name.
        models: Which models are in question.
        config: What they were attacked with, written out.
        outcomes: All that was found.
    """
    asked = config.material
    n_test = sum(min(n, asked.test_per_cell) for n in manifest.cell_counts("test").values())
    return {
        "data set": f"{manifest.name}, manifest {manifest.digest[:12]}"
        + (" (synthetic data)" if manifest.synthetic else ""),
        "forget": forget_name(forget),
        "backbone": backbone,
        "checkpoints": models,
        "images": f"{n_test} test images; an attacker has up to {asked.fresh_per_cell} of each "
        "class that were not trained on",
        "time": f"{sum(outcome.took_s for outcome in outcomes):.0f} s of attacks",
    }


def evidence_figures(evidence: Evidence) -> dict[str, Any]:
    """All that was found, as plain values."""
    return {
        "label": evidence.label,
        "verdict": evidence.verdict,
        "facts": evidence.facts,
        "standings": {label: _standing(its) for label, its in evidence.standings.items()},
        "outcomes": [asdict(outcome) for outcome in evidence.outcomes],
    }


def _standing(standing: Standing) -> dict[str, Any]:
    worst = None
    if standing.worst is not None:
        (attack, variant), found = standing.worst
        worst = {"attack": attack, "variant": variant, **asdict(found)}
    return {
        "distance": asdict(standing.distance),
        "kept": asdict(standing.kept),
        "worst": worst,
        "by_attack": {name: asdict(found) for name, found in standing.by_attack.items()},
    }


def evidence_table(evidence: Evidence) -> Table:
    """Residuals by attack and model, in %."""
    table = Table(
        title="What is left of the domain, % of the untouched model", title_justify="left"
    )
    table.add_column("attack")
    for label in evidence.standings:
        table.add_column(label.replace("_", " "), justify="right")
    for name in evidence.counted:
        cells = (with_interval(its.by_attack[name]) for its in evidence.standings.values())
        table.add_row(evidence.attacks[name].title, *cells)
    table.add_section()
    distances = (with_interval(its.distance) for its in evidence.standings.values())
    table.add_row("distance", *distances)
    return table


def with_interval(value: Estimate, factor: float = 100, digits: int = 0) -> str:
    """A figure as it is shown, with half of its interval if there is one."""
    half = value.half_width
    spread = "" if half is None else f" ± {factor * half:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{spread}"
