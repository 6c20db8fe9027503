"""The search: from images to a compared, forgotten model, one study a forget set.

python pipeline/search.py [--config search_spaces/pacs.yaml] [--manifest URL] [--forget a,b] ...
ray job submit --working-dir . -- python pipeline/search.py --output /absolute/path ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from adu.errors import UserError
from pipeline.command import EXIT_INTERRUPTED, EXIT_OK, plain_console, run_and_exit, run_command
from pipeline.demo_data import prepare_demo
from pipeline.jobs.conductor import Conductor
from pipeline.jobs.config import DEMO, SHORTCUTS, SearchConfig
from pipeline.jobs.dry_run import show_plan
from pipeline.jobs.interrupt import Interrupt
from pipeline.jobs.job import EXIT_FAILED
from pipeline.jobs.plan import Plan, make_plan
from pipeline.results.copies import OutputLostError
from pipeline.results.output import point_latest
from pipeline.results.progress import quiet_ray
from pipeline.tracking.server import check

DEFAULT_CONFIG = Path(__file__).parents[1] / "search_spaces" / "demo.yaml"


def search(config: SearchConfig) -> int:
    """Runs a search to its end, or as far as it is let; returns the exit code."""
    started_at = time.monotonic()
    plan = make_plan(config, prepare_demo)
    _check_model(plan)
    check(config.tracking, plan.manifest.name)
    if config.dry_run:
        show_plan(plan, plain_console(sys.stdout))
        return EXIT_OK
    output = plan.open_output()
    if not config.output:
        point_latest(Path(output.url))
    with Interrupt() as interrupt, quiet_ray(output.ray_log) as stdout:
        conductor = Conductor(plan, output, interrupt, stdout, started_at)
        try:
            return conductor.run()
        except (UserError, OutputLostError) as error:
            if not conductor.has_begun:
                output.discard()
                raise
            stdout.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
            return EXIT_FAILED
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            ray.shutdown()
            output.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not any(argument.split("=")[0] in ("--config", "-h", "--help") for argument in arguments):
        arguments = ["--config", str(DEFAULT_CONFIG), *arguments]
    return run_command(SearchConfig, search, SHORTCUTS, arguments)


def _check_model(plan: Plan) -> None:
    """The default configuration's model is for the default configuration's images."""
    if plan.context.backbone.name == DEMO and not plan.manifest.synthetic:
        raise UserError(
            f"context.backbone.name '{DEMO}': has seen drawn pictures alone, not those of "
            f"{plan.manifest.url} (give --backbone ARCHITECTURE:TAG, or a model's folder)"
        )


if __name__ == "__main__":
    run_and_exit(main)
