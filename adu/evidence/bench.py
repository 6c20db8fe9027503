"""Runs a battery of attacks on models, one after the other; what is done is not done again.

An outcome is a file. It is used again where nothing that it depends on has changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adu import storage
from adu.evidence.attacks import Attack, Figures
from adu.evidence.subject import Subject

OUTCOMES = "outcomes"


@dataclass(frozen=True)
class Contestant:
    """A model that takes its turn; it is loaded, or trained, when that comes.

    Attributes:
        label: What it is called in tables.
        seed: Which of its runs.
        identity: What tells it, and what it is asked with, from others; changes with both.
        load: Gives it.
    """

    label: str
    seed: int
    identity: str
    load: Callable[[], Subject]


@dataclass(frozen=True)
class Outcome:
    """What an attack found on a model.

    Attributes:
        label: The model's.
        seed: The model's.
        attack: The attack's name.
        figures: What it found.
        took_s: How long it took.
    """

    label: str
    seed: int
    attack: str
    figures: Figures
    took_s: float


@dataclass(frozen=True)
class Progress:
    """How far a battery is.

    Attributes:
        outcome: What came last.
        done: Outcomes so far, those of earlier calls included.
        total: Outcomes there will be.
        was_there: Whether it was found and not run again.
    """

    outcome: Outcome
    done: int
    total: int
    was_there: bool


def run_battery(
    contestants: Sequence[Contestant],
    attacks: Mapping[str, Attack],
    place: str,
    write: Callable[[str, bytes], None] = storage.write_bytes,
) -> Iterator[Progress]:
    """Runs what has not been run, and gives every outcome.

    Args:
        contestants: The models.
        attacks: The attacks, by name.
        place: Folder or URL where outcomes are kept.
        write: Writes a file there.
    """
    total = len(contestants) * len(attacks)
    done = 0
    for contestant in contestants:
        subject: Subject | None = None
        for name, attack in attacks.items():
            done += 1
            file = outcome_file(place, contestant.label, contestant.seed, name)
            asked = _asked(contestant, attack)
            if (found := _read(file, asked)) is not None:
                yield Progress(found, done, total, was_there=True)
                continue
            if subject is None:
                subject = contestant.load()
            start_s = time.perf_counter()
            figures = attack.run(subject)
            took_s = time.perf_counter() - start_s
            outcome = Outcome(contestant.label, contestant.seed, name, figures, took_s)
            document = {"asked": asked, **asdict(outcome)}
            write(file, json.dumps(document, indent=1).encode())
            yield Progress(outcome, done, total, was_there=False)


def outcome_file(place: str, label: str, seed: int, attack: str) -> str:
    """Where an outcome is kept."""
    return storage.join(place, OUTCOMES, f"{label}-seed-{seed}", f"{attack}.json")


def read_outcomes(
    place: str, entries: Iterable[tuple[str, int]], attacks: Iterable[str]
) -> list[Outcome]:
    """All outcomes of a battery that has come to its end.

    Args:
        place: Folder or URL where they are kept.
        entries: Label and seed of each model.
        attacks: The attacks' names.
    """
    names = list(attacks)
    files = [outcome_file(place, *entry, name) for entry in entries for name in names]
    return [_outcome(json.loads(storage.read_bytes(file))) for file in files]


def _asked(contestant: Contestant, attack: Attack) -> str:
    options = attack.model_dump_json()
    return hashlib.sha256(f"{contestant.identity}|{options}".encode()).hexdigest()


def _read(file: str, asked: str) -> Outcome | None:
    """An outcome of the same question; None where there is none."""
    if not storage.exists(file):
        return None
    document: dict[str, Any] = json.loads(storage.read_bytes(file))
    return _outcome(document) if document["asked"] == asked else None


def _outcome(document: dict[str, Any]) -> Outcome:
    """What a file of an outcome holds."""
    figures = document["figures"]
    curves = {
        name: [(int(step), float(value)) for step, value in curve]
        for name, curve in figures["curves"].items()
    }
    named = {name: document[name] for name in ("label", "seed", "attack", "took_s")}
    return Outcome(**named, figures=Figures(**{**figures, "curves": curves}))
