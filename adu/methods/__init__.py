"""The methods, each one short file, behind one interface and the registry below.

A new method is a file with a configuration and a `Method`, and a line in ``METHODS``; one of
another package needs no line here (`adu.methods.plugins`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, SerializeAsAny, Tag

from adu.config import MAX_SHOWN, StrictModel
from adu.errors import UserError
from adu.methods.adu import Adu, AduConfig
from adu.methods.base import Method, Output, Task
from adu.methods.baseline import Baseline, BaselineConfig
from adu.methods.bbf import Bbf, BbfConfig
from adu.methods.clipfit import ClipFit, ClipFitConfig
from adu.methods.coop import CoOp, CoOpConfig
from adu.methods.distilled import Distilled, DistilledConfig
from adu.methods.lp_plus_plus import LpPlusPlus, LpPlusPlusConfig
from adu.methods.maple import MaPLe, MaPLeConfig
from adu.methods.null_space import NullSpace, NullSpaceConfig
from adu.methods.plugins import MethodOptions, find_plugin, plugin_options
from adu.methods.zero_shot import ZeroShot, ZeroShotConfig
from adu.models.backbone import Backbone

__all__ = [
    "METHODS",
    "Method",
    "MethodConfig",
    "MethodOptions",
    "Output",
    "Task",
    "build_method",
]

METHODS: dict[str, type[Method]] = {
    "zero_shot": ZeroShot,
    "baseline": Baseline,
    "adu": Adu,
    "lp++": LpPlusPlus,
    "clipfit": ClipFit,
    "bbf": Bbf,
    "coop": CoOp,
    "maple": MaPLe,
    "null_space": NullSpace,
    "distilled": Distilled,
}

DEFAULT_METHOD = "adu"


def _tag(values: Any) -> str:
    if isinstance(values, MethodOptions):
        return "name=plug-in"
    name = values.get("name", DEFAULT_METHOD) if isinstance(values, Mapping) else values.name
    return f"name={name}"


def _named(values: Any) -> Any:
    """A method by its name alone, with all its defaults; one of another package, by its options."""
    values = {"name": values} if isinstance(values, str) else values
    if not isinstance(values, Mapping | StrictModel):
        shown = repr(values)[:MAX_SHOWN]
        raise UserError(f"method = {shown} (allowed: a method's name, or its options)")
    if isinstance(values, Mapping) and str(values.get("name", DEFAULT_METHOD)) not in METHODS:
        return plugin_options(values, METHODS)
    return values


# Which options a method has depends on its name; without one it is ADU.
MethodConfig = Annotated[
    Annotated[ZeroShotConfig, Tag("name=zero_shot")]
    | Annotated[BaselineConfig, Tag("name=baseline")]
    | Annotated[AduConfig, Tag("name=adu")]
    | Annotated[LpPlusPlusConfig, Tag("name=lp++")]
    | Annotated[ClipFitConfig, Tag("name=clipfit")]
    | Annotated[BbfConfig, Tag("name=bbf")]
    | Annotated[CoOpConfig, Tag("name=coop")]
    | Annotated[MaPLeConfig, Tag("name=maple")]
    | Annotated[NullSpaceConfig, Tag("name=null_space")]
    | Annotated[DistilledConfig, Tag("name=distilled")]
    | Annotated[SerializeAsAny[MethodOptions], Tag("name=plug-in")],
    Discriminator(_tag),
    BeforeValidator(_named),
]


def build_method(config: StrictModel, backbone: Backbone, task: Task) -> Method:
    """Builds the method that a configuration names.

    Raises:
        UserError: If an option does not fit the backbone.
    """
    name: str = config.name  # type: ignore[attr-defined]
    method = METHODS[name] if name in METHODS else find_plugin(name)
    return method(config, backbone, task)  # type: ignore[call-arg, arg-type]
