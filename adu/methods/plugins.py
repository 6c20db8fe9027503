"""Methods of other packages, found by name or by import path, without a change here.

A plug-in is a `Method` whose attribute ``options`` is its configuration, a `MethodOptions`. A
package makes one known by an entry point of the group `GROUP`; without that, the name of a method
is where it is to be imported from, ``package.module:Class``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from adu.config import StrictModel, parse_config
from adu.errors import UserError
from adu.methods.base import Method

GROUP = "adu.methods"


class MethodOptions(StrictModel):
    """The options of a method of another package; what it adds are its fields.

    Attributes:
        name: The method's, as the user wrote it.
    """

    name: str


def plugin_names() -> list[str]:
    """The names that installed packages have given their methods."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_plugin(name: str, others: Iterable[str] = ()) -> type[Method]:
    """The class that a name stands for.

    Args:
        name: An entry point's or an import path.
        others: Names that would have been right as well, for the message.

    Raises:
        UserError: If no package has a method of that name, or it is none.
    """
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            found: Any = getattr(import_module(module), attribute)
        else:
            points = tuple(entry_points(group=GROUP, name=name))
            if not points:
                known = ", ".join([*others, *plugin_names()])
                raise UserError(
                    f"method.name = '{name}': unknown method (known: {known}, and that of another "
                    "package as package.module:Class)"
                )
            found = points[0].load()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"method.name = '{name}': cannot be imported ({reason})") from error
    options = getattr(found, "options", None)
    if not (_inherits(found, Method) and _inherits(options, MethodOptions)):
        raise UserError(
            f"method.name = '{name}': is no method (allowed: a class that inherits from "
            "adu.methods.Method, whose attribute options is one from adu.methods.MethodOptions)"
        )
    return found


def plugin_options(values: Mapping[str, Any], others: Iterable[str] = ()) -> MethodOptions:
    """The options of a method of another package, out of plain values.

    Args:
        values: The options; ``name`` is the method's.
        others: Names that would have been right as well, for the message.

    Raises:
        UserError: If there is no such method, or it has no such options.
    """
    name = str(values["name"])
    options: type[MethodOptions] = find_plugin(name, others).options  # type: ignore[attr-defined]
    return parse_config(options, values, f"method {name}")


def check_imported(name: Any, source: str) -> None:
    """Checks that a name which came in a file imports nothing that is not imported already.

    A file from anywhere must not choose which code runs here.

    Raises:
        UserError: If it would.
    """
    module = name.partition(":")[0] if isinstance(name, str) and ":" in name else None
    if module is not None and module not in sys.modules:
        raise UserError(
            f"{source}: was trained by the method '{name}' of another package: import "
            f"{module} first"
        )


def _inherits(found: Any, base: type) -> bool:
    return isinstance(found, type) and issubclass(found, base)
