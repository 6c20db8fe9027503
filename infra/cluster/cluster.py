"""What an administrator of a Kubernetes cluster does: see, compare, and look for what is missing.

python infra/cluster/cluster.py render platform|tracking | kubectl apply -f -
python infra/cluster/cluster.py render search|check|ingest|model NAME | kubectl apply -f -
python infra/cluster/cluster.py diff platform|tracking|search NAME
python infra/cluster/cluster.py secrets --search-keys FILE ... | kubectl create -f -
python infra/cluster/cluster.py doctor [--node]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adu.errors import UserError
from infra.cluster.doctor import Finding, examine, problems
from infra.cluster.node_doctor import examine_node
from infra.cluster.rendering import LAYERS, NAMED, Manifest, as_yaml, render_layer
from infra.cluster.secret_manifests import S3_SECRETS, secret_manifests
from infra.cluster.settings import Settings, load_settings

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR = 0, 1, 2


def render(arguments: argparse.Namespace, settings: Settings) -> int:
    """Prints the objects of a layer, a search or a job."""
    sys.stdout.write(as_yaml(_manifests(arguments, settings)))
    return EXIT_OK


def diff(arguments: argparse.Namespace, settings: Settings) -> int:
    """Shows what applying them would change in the cluster; exit code 1 if anything would."""
    text = as_yaml(_manifests(arguments, settings))
    try:
        done = subprocess.run(["kubectl", "diff", "-f", "-"], input=text, text=True, check=False)
    except FileNotFoundError:
        raise UserError("kubectl: is not installed") from None
    return done.returncode


def secrets(arguments: argparse.Namespace, settings: Settings) -> int:
    """Prints all Secrets, with passwords made just now, for `kubectl create -f -`."""
    if sys.stdout.isatty():
        raise UserError("secrets: not to a terminal (pipe them to: kubectl create -f -)")
    files = {name: getattr(arguments, _dest(name)) for name in S3_SECRETS}
    sys.stdout.write(as_yaml(secret_manifests(settings, files)))
    return EXIT_OK


def doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    """Says what the cluster (--node: this machine) lacks; exit code 1 if a search cannot run so."""
    node = arguments.node
    findings = list(examine_node(Path("results").absolute()) if node else examine(settings))
    Console().print(_table(findings))
    return EXIT_FAILED if problems(findings) else EXIT_OK


COMMANDS = {"render": render, "diff": diff, "secrets": secrets, "doctor": doctor}


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = _parser().parse_args(argv)
    try:
        settings = load_settings(arguments.settings)
        return COMMANDS[arguments.command](arguments, settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        command = commands.add_parser(name, help=function.__doc__, allow_abbrev=False)
        command.add_argument(
            "--settings", type=Path, metavar="FILE", help="goes over infra/settings.yaml"
        )
        if name in ("render", "diff"):
            command.add_argument("what", choices=[*LAYERS, *NAMED])
            command.add_argument("name", nargs="?", help="of the search, ingest or model")
        if name == "secrets":
            for secret, what in S3_SECRETS.items():
                command.add_argument(
                    _flag(secret),
                    type=Path,
                    required=True,
                    metavar="FILE",
                    help=f"lines AWS_ACCESS_KEY_ID=... of {what}",
                )
        if name == "doctor":
            command.add_argument("--node", action="store_true", help="look at this machine")
    return parser


def _dest(secret: str) -> str:
    """adu-search-s3 to search_keys."""
    return secret.removeprefix("adu-").removesuffix("-s3").replace("-", "_") + "_keys"


def _flag(secret: str) -> str:
    return f"--{_dest(secret).replace('_', '-')}"


def _manifests(arguments: argparse.Namespace, settings: Settings) -> list[Manifest]:
    what, name = arguments.what, arguments.name
    if what in LAYERS:
        if name is not None:
            raise UserError(f"{what}: takes no name, '{name}' was given")
        return render_layer(settings, what)
    if name is None:
        raise UserError(f"{what}: name one of the settings (render {what} NAME)")
    return NAMED[what](settings, name)


def _table(findings: Sequence[Finding]) -> Table:
    table = Table()
    for column in ("what", "", "why"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        word = "[red]missing[/red]" if finding.fatal else "[yellow]note[/yellow]"
        shown = word if finding.problem else "[green]ok[/green]"
        table.add_row(escape(finding.what), shown, escape(finding.problem))
    return table


if __name__ == "__main__":
    sys.exit(main())
