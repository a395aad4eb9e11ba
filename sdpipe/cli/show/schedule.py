"""`sdpipe show schedule`: the noise schedule, and the timesteps of each scheduler."""

from typing import Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.fallback import default_model
from sdpipe.cli.groups import grouped
from sdpipe.cli.show.options import Names, OutputOptions, parse_names
from sdpipe.settings import SAMPLING, SCHEDULERS
from sdpipe.show import checks


@grouped
def schedule(
    scheduler: Annotated[
        Names | None,
        options.option(
            SAMPLING,
            f"One or more, as in lms,ddim. Default: {', '.join(SCHEDULERS)}.",
            metavar="NAMES",
            parser=parse_names,
        ),
    ] = None,
    steps: Annotated[Any, options.setting("steps")] = None,
    karras: Annotated[bool, options.setting("karras")] = False,
    model: options.Model = None,
    *,
    output: OutputOptions,
    debug: options.Debug = False,
) -> None:
    """Draws sigma and alpha_bar over time, and the timesteps of each scheduler."""
    chosen = scheduler or Names()
    checks.check_schedule(chosen, steps, karras)
    drawing = output.check("schedule", " ".join(chosen))
    from sdpipe.loading.parts import read_defaults, read_scheduler
    from sdpipe.show.schedule import schedule_data, schedule_figure

    model = default_model(model, "scheduler")
    steps = read_defaults(model).get("steps") if steps is None else steps
    data = schedule_data(read_scheduler(model), chosen, steps, karras=karras)
    console.print_result(drawing.finish(data.to_dict(), lambda: schedule_figure(data)))
