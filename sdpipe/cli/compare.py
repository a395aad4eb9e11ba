"""`sdpipe compare`: does the loop draw what diffusers draws."""

from pathlib import Path
from typing import Annotated

import typer

from sdpipe.cli import console, options
from sdpipe.cli.fallback import fall_back
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SettingsOptions, grouped
from sdpipe.errors import UsageError
from sdpipe.io import files, names
from sdpipe.settings import OUTPUT, Settings
from sdpipe.show import style
from sdpipe.show.output import DRAWINGS
from sdpipe.show.output import to_json as in_one_line

CHECK = "Check"

Prompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")]
Dtype = Annotated[
    str,
    options.option(
        options.MODEL, "float32, float16, bfloat16, or auto as for generate.", metavar="NAME"
    ),
]
Tolerance = Annotated[
    float | None,
    options.option(
        CHECK,
        "The largest difference of the latents, relative to their largest value. Default: 1e-4 in "
        "float32, more in 16 bits.",
        metavar="NUMBER",
    ),
]
Out = Annotated[
    str | None,
    options.option(
        OUTPUT,
        "Draw the curve into a .png, .svg or .pdf file. Existing files are never overwritten.",
        "--out",
        "-o",
        metavar="FILE",
    ),
]


class CompareOptions(SettingsOptions):
    """The settings that diffusers' pipeline has, too."""

    names = (
        *("negative_prompt", "seed", "dim", "width", "height", "g", "guidance_rescale", "steps"),
        *("scheduler", "lms_order", "karras", "spacing", "zero_snr", "eta", "rng"),
    )


@grouped
def compare(
    prompt: Prompt,
    *,
    settings: CompareOptions,
    model: ModelOptions,
    device: options.Device = "auto",
    dtype: Dtype = "float32",
    tolerance: Tolerance = None,
    out: Out = None,
    overwrite: options.Overwrite = False,
    as_json: options.PrintJson = False,
    debug: options.Debug = False,
) -> int:
    """Draws an image with sdpipe's loop and with diffusers' pipeline, and compares every step.

    Both use the same weights and noise. The exit status is 0 if latents and image are within the
    tolerance, else 1.
    """
    from sdpipe.show.compare import check_tolerance, compare_figure
    from sdpipe.show.compare import compare as compare_with_diffusers
    from sdpipe.show.reference import check_guidance, plain_text

    inputs = settings.to_kwargs()
    Settings(prompt=prompt, **inputs)
    for text in (prompt, inputs["negative_prompt"]):
        plain_text(text)
    check_guidance(inputs["g"], inputs["guidance_rescale"])
    check_tolerance(tolerance)
    machine = DeviceOptions(device, dtype).to_kwargs()
    figure_path = None if out is None else _figure_path(out, overwrite=overwrite)
    loaded = model.to_kwargs()
    fall_back(loaded, dtype, inputs)

    with console.status("loading the model ..."):
        from sdpipe import Pipeline

        pipe = Pipeline(**loaded, **machine)
    with console.bar("drawing twice") as on_step:
        found = compare_with_diffusers(pipe, prompt, tolerance=tolerance, on_step=on_step, **inputs)
    written = {}
    if figure_path is not None:
        data = style.encode(compare_figure(found), figure_path.suffix.lower())
        written["path"] = str(files.write(figure_path, data, overwrite=overwrite))
    if as_json:
        console.print_result(in_one_line({**found.to_dict(), **written}))
    else:
        console.print_result("\n".join([str(found), *written.values()]))
    return 0 if found.passed else console.FAILED


def _figure_path(out: str, *, overwrite: bool) -> Path:
    """The file that the curve goes to, checked before anything takes time.

    Raises:
        UsageError: its format cannot be written, or its folder.
    """
    if Path(out).suffix.lower() not in DRAWINGS:
        raise UsageError(
            f"--out {out}",
            "is not a drawing's name",
            f"give a name ending in {', '.join(DRAWINGS)}",
        )
    path = names.Destination(out, 1, DRAWINGS, overwrite=overwrite).path(0, "compare")
    style.check_matplotlib()
    return path
