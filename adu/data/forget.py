"""Forget sets: what is to be forgotten, as whole domains or as single classes of a domain.

Tensor names carry their shape: C classes, D domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adu.errors import UserError

# Between a domain and a class. Both may hold it too: what names a domain is that domain.
PAIR = ":"

Cell = tuple[str, str]


def forget_cells(entry: str, classes: Sequence[str], domains: Sequence[str]) -> list[Cell]:
    """The (class, domain) cells that an entry of a forget set stands for; none if it is unknown.

    Args:
        entry: A domain, or ``domain:class``.
        classes: Class names.
        domains: Domain names.

    Example:
        >>> forget_cells("sketch:dog", ["cat", "dog"], ["photo", "sketch"])
        [('dog', 'sketch')]
    """
    if entry in domains:
        return [(name, entry) for name in classes]
    parts = entry.split(PAIR)
    splits = [(PAIR.join(parts[i:]), PAIR.join(parts[:i])) for i in range(1, len(parts))]
    return [(name, domain) for name, domain in splits if name in classes and domain in domains][:1]


def forget_mask(
    forget: Sequence[str], classes: Sequence[str], domains: Sequence[str]
) -> np.ndarray:
    """True in forget_CD where the class is to be forgotten in the domain."""
    forget_CD = np.zeros((len(classes), len(domains)), dtype=bool)
    for entry in forget:
        for name, domain in forget_cells(entry, classes, domains):
            forget_CD[classes.index(name), domains.index(domain)] = True
    return forget_CD


def forget_domains(forget: Sequence[str], domains: Sequence[str]) -> tuple[str, ...]:
    """The domains of which something is forgotten, in the order of the data set."""
    whole = [entry for entry in forget if entry in domains]
    parts = [entry for entry in forget if entry not in domains]
    return tuple(
        domain
        for domain in domains
        if domain in whole or any(entry.startswith(domain + PAIR) for entry in parts)
    )


def check_forget_set(forget: Sequence[str], classes: Sequence[str], domains: Sequence[str]) -> None:
    """Checks that a forget set names some but not all of the images.

    Raises:
        UserError: Naming what is wrong and what is known.
    """
    known = ", ".join(domains)
    listed = ", ".join(forget)
    if not forget:
        raise UserError(f"forget set is empty (known domains: {known})")
    seen: set[Cell] = set()
    for entry in forget:
        cells = set(forget_cells(entry, classes, domains))
        if not cells:
            raise UserError(_unknown(entry, classes, domains))
        if cells & seen:
            raise UserError(f"forget set {listed}: names {_what(entry, domains)} twice")
        seen |= cells
    if len(seen) == len(classes) * len(domains):
        raise UserError(f"forget set {listed}: is all domains, none is left to retain")


def _what(entry: str, domains: Sequence[str]) -> str:
    return "a domain" if entry in domains else f"'{entry}'"


def _unknown(entry: str, classes: Sequence[str], domains: Sequence[str]) -> str:
    domain = next((name for name in domains if entry.startswith(name + PAIR)), None)
    if domain is None:
        return f"forget domain '{entry}': unknown (known domains: {', '.join(domains)})"
    name = entry.removeprefix(domain + PAIR)
    return f"forget '{entry}': class '{name}' is unknown (known classes: {', '.join(classes)})"
