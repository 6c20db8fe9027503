"""Reads infra/image/Dockerfile as far as its tests need it."""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.pipeline.commands import ROOT

DOCKERFILE = ROOT / "infra" / "image" / "Dockerfile"
# A mount of BuildKit's cache, which a test has no use for.
MOUNT = re.compile(r"--mount=\S+\s+")


class Step(NamedTuple):
    """An instruction, its continued lines joined."""

    instruction: str
    arguments: str


class Stage(NamedTuple):
    """A stage of a multi-stage build."""

    name: str
    base: str
    steps: list[Step]


def read_stages(text: str) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    stages: dict[str, Stage] = {}
    for step in _steps(text):
        if step.instruction == "FROM":
            base, _, name = step.arguments.partition(" AS ")
            stage = stages[name] = Stage(name, base, [])
        elif stages:
            stage.steps.append(step)
    return stages


def _steps(text: str) -> list[Step]:
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [Step(*line.split(maxsplit=1)) for line in joined]


def chain(stages: dict[str, Stage], name: str) -> list[Stage]:
    """A stage with those that it is made from, the first one first."""
    stage = stages[name]
    before = chain(stages, stage.base) if stage.base in stages else []
    return [*before, stage]


def copied_from(stages: dict[str, Stage], target: str) -> str:
    """The stage that a target takes its environment from."""
    (source,) = {
        found
        for step in stages[target].steps
        if step.instruction == "COPY"
        for found in re.findall(r"--from=(\S+)", step.arguments)
    }
    return source


def commands(stages: dict[str, Stage], name: str) -> list[str]:
    """The RUN lines that lead to a stage, without their cache mounts."""
    return [
        MOUNT.sub("", step.arguments).strip()
        for stage in chain(stages, name)
        for step in stage.steps
        if step.instruction == "RUN"
    ]


def image_problems(text: str) -> list[str]:
    """What a Dockerfile for this project must not do."""
    stages = read_stages(text)
    problems = []
    for stage in stages.values():
        base = stage.base
        if base not in stages and not re.fullmatch(r"\S+:[^:@\s]*\d[^:@\s]*@\$\{\w+\}", base):
            problems.append(f"{stage.name}: base {base} is not pinned by version and digest")
        for step in stage.steps:
            problems += [f"{stage.name}: {text}" for text in _step_problems(step)]
    for target in ("cpu", "cuda"):
        problems += [f"{target}: {text}" for text in _target_problems(stages, target)]
    return problems


def _step_problems(step: Step) -> list[str]:
    problems = []
    if re.search(r"(curl|wget)[^|;&]*\|\s*(ba)?sh", step.arguments):
        problems.append("runs what it has just fetched")
    secret = re.compile(r"\w*(PASSWORD|SECRET|TOKEN|ACCESS_KEY)\w*", re.IGNORECASE)
    if step.instruction in ("ARG", "ENV") and secret.search(step.arguments):
        problems.append(f"{step.instruction} holds a secret, which stays in the image")
    if step.instruction == "ADD":
        problems.append("ADD fetches and unpacks: COPY")
    return problems


def _target_problems(stages: dict[str, Stage], target: str) -> list[str]:
    steps = [step for stage in chain(stages, target) for step in stage.steps]
    problems = []
    users = [step.arguments for step in steps if step.instruction == "USER"]
    if not users or users[-1].split(":")[0] in ("0", "root") or not users[-1][0].isdigit():
        problems.append("does not run as a numbered user other than root")
    for step in steps:
        if step.instruction == "RUN" and re.search(r"\b(apt|apt-get|apk|uv|gcc)\b", step.arguments):
            problems.append("installs in the final stage")
        if step.instruction == "RUN" and re.search(r"\bpip install\b", step.arguments):
            problems.append("installs in the final stage")
    if not any("pip uninstall --yes pip" in step.arguments for step in steps):
        problems.append("keeps pip")
    return problems
