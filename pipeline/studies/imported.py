"""What a configuration names by its import path."""

from __future__ import annotations

import importlib
from typing import Any

from adu.errors import UserError


def imported(path: str, field: str, known: str) -> Any:
    """Imports what a field names.

    Args:
        path: ``package.module.Name`` or ``package.module:Name``.
        field: The field, for the message.
        known: What else the field may be, for the message.

    Raises:
        UserError: If there is no such thing.
    """
    module, _, attribute = path.replace(":", ".").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{field} '{path}': unknown ({known})") from error
