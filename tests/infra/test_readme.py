"""The walk-throughs of infra/README.md, command by command, as far as no cluster is needed."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from infra.cluster.cluster import main
from infra.cluster.rendering import render_search
from infra.cluster.settings import load_settings
from tests.infra.manifests import SETTINGS, all_problems, jobs, services
from tests.pipeline.commands import ROOT

README = ROOT / "infra" / "README.md"
TEXT = README.read_text(encoding="utf-8")
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
BLOCKS = [text for language, text in FENCED if not language]
LINES = [
    re.sub(r"\s+#.*$", "", line)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
OURS = "python infra/cluster/cluster.py "


def cluster_commands() -> list[str]:
    parts = {part.strip() for line in LINES for part in line.split("|")}
    return sorted(part for part in parts if part.startswith(OURS))


@pytest.mark.parametrize("command", cluster_commands())
def test_a_command_of_the_walk_through_runs(command, tmp_path, monkeypatch, capsys):
    """`kubectl` and a cluster are what is missing; all up to them works."""
    for name in ("s3.env", "mlflow-s3.env", "backup-s3.env"):
        (tmp_path / name).write_text("AWS_ACCESS_KEY_ID=k\nAWS_SECRET_ACCESS_KEY=s\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    code = main(shlex.split(command.removeprefix(OURS)))
    said = capsys.readouterr()
    verb = command.removeprefix(OURS).split()[0]
    if verb in ("render", "secrets"):
        assert (code, said.err) == (0, "")
        assert all(manifest["kind"] for manifest in yaml.safe_load_all(said.out))
    elif "--node" not in command:
        assert code in (1, 2) and "kubectl" in said.out + said.err


def test_there_are_commands_of_every_kind():
    verbs = {command.removeprefix(OURS).split()[0] for command in cluster_commands()}
    assert verbs == {"render", "diff", "secrets", "doctor"}


def test_what_kubectl_is_asked_for_is_there():
    objects = [*services(), *jobs()]
    for name in SETTINGS.searches:
        objects += render_search(SETTINGS, name)
    names = {(o["kind"].lower(), o["metadata"]["name"]) for o in objects}
    # A search's submitter, which KubeRay makes.
    names |= {("job", name) for name in SETTINGS.searches}
    asked = re.findall(r"\b(job|deployment|cronjob)/([\w-]+)", "\n".join(LINES) + TEXT)
    asked += re.findall(r"get (rayjob) (\w+)", "\n".join(LINES))
    assert len(asked) > 4
    assert set(asked) <= names


def test_platform_comes_before_what_lives_on_it():
    """Names, policies and accounts are there before MLflow asks for them."""
    steps = ("platform", "tracking", "check smoke", "search smoke")
    places = [LINES.index(f"{OURS}render {step} | kubectl apply -f -") for step in steps]
    assert places == sorted(places)


def test_the_settings_of_ones_own_are_sound(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(block)
    settings = load_settings(file)
    objects = [*services(settings), *jobs(settings), *render_search(settings, "pacs-1")]
    assert all_problems(objects) == []
    assert {o["metadata"].get("namespace", "team-a") for o in objects} == {"team-a"}


def test_files_that_the_page_names_are_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert "://" in target or (README.parent / target).exists(), target


def test_no_password_is_on_a_command_line():
    for line in LINES:
        assert not re.search(r"--from-literal|password=|-u \w+:", line), line
