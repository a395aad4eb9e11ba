"""`sdpipe serve`: starts the server, and knows nothing else of it."""

import os
import signal
from typing import TYPE_CHECKING, Annotated, Any

from sdpipe.cli import console, options
from sdpipe.cli.fallback import default_model
from sdpipe.cli.groups import DeviceOptions, ModelOptions, SpeedOptions, grouped
from sdpipe.cli.interrupt import INTERRUPTED, end_process
from sdpipe.errors import UsageError
from sdpipe.values import check_int

if TYPE_CHECKING:
    from sdpipe.pipeline import Pipeline

SERVER, LIMITS, ACCESS = "Server", "Limits", "Who may ask"
LOCAL = ("127.0.0.1", "localhost", "::1")

Models = Annotated[
    list[str] | None,
    options.option(
        options.MODEL,
        "What to serve: emoji (built in), a folder, a .safetensors file or a hub id; can be given "
        "many times, the first is drawn with by default. Left out: $SDPIPE_MODEL, else "
        "CompVis/stable-diffusion-v1-4.",
        "--model",
        metavar="NAME",
    ),
]
Host = Annotated[str, options.option(SERVER, "The address to listen at.", metavar="ADDRESS")]
Port = Annotated[
    int, options.option(SERVER, "The port; 0 takes a free one.", metavar="N", parser=int)
]
Grace = Annotated[
    int,
    options.whole(SERVER, "Seconds that what is being drawn gets when SIGTERM comes.", "--grace"),
]
Key = Annotated[
    str | None,
    options.option(
        ACCESS,
        "What every request has to bring, as a Bearer token or the password of Basic.",
        "--api-key",
        metavar="KEY",
        envvar="SDPIPE_API_KEY",
        show_envvar=True,
    ),
]
Hosts = Annotated[
    list[str] | None,
    options.option(
        ACCESS,
        "A name by which it may be called, beside its address and localhost; can be given many "
        "times.",
        "--allowed-host",
        metavar="NAME",
    ),
]
Cors = Annotated[
    list[str] | None,
    options.option(
        ACCESS,
        "An origin of pages elsewhere that may ask, such as https://example.org; can be given "
        "many times.",
        "--cors",
        metavar="ORIGIN",
    ),
]
Queue = Annotated[int, options.whole(LIMITS, "Requests that may wait.", "--queue")]
MaxPixels = Annotated[
    int | None,
    options.whole(
        LIMITS,
        "Pixels of all images of a request. Default: 16 images of the model's own size.",
        "--max-pixels",
    ),
]
MaxSteps = Annotated[int, options.whole(LIMITS, "Steps of an image.", "--max-steps")]
Join = Annotated[
    bool,
    options.flag(LIMITS, "Draw waiting requests that go together as one batch.", "--join"),
]


@grouped
def serve(
    *,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    grace: Grace = 30,
    api_key: Key = None,
    allowed_host: Hosts = None,
    cors: Cors = None,
    queue: Queue = 64,
    max_pixels: MaxPixels = None,
    max_steps: MaxSteps = 150,
    join: Join = False,
    model: Models = None,
    lora: options.LoraFiles = None,
    embedding: options.EmbeddingFiles = None,
    device: DeviceOptions,
    speed: SpeedOptions,
    debug: options.Debug = False,
) -> int:
    """Serves a page to draw on, OpenAI's interface to images under /v1, and A1111's under /sdapi.

    Models and LoRAs are loaded at the start; no request loads another. SIGTERM lets what is being
    drawn come to its end.
    """
    for name, value in {"queue": queue, "max_steps": max_steps, "max_pixels": max_pixels}.items():
        if value is not None:
            check_int(f"--{name.replace('_', '-')}", value, 1, 2**40)
    check_int("--grace", grace, 0, 86400)
    _check(host, port, api_key, cors or [])
    try:
        from sdpipe.serve.run import listen
        from sdpipe.serve.run import serve as run
    except ImportError as error:
        remedy = 'pip install "sdpipe[serve]"'
        raise UsageError("serve", f"needs the package {error.name}", remedy) from error
    machine = {**device.to_kwargs(), **speed.to_kwargs()}
    names: list[str | None] = (
        [*model] if model else [default_model(None, full_precision=device.dtype == "float32")]
    )
    loaded = [
        ModelOptions(name, lora=lora, embedding=embedding).to_kwargs()
        for name in dict.fromkeys(names)
    ]
    _look_at(loaded, device.dtype)
    with listen(host, port) as sock:
        at = sock.getsockname()
        url = f"http://{f'[{at[0]}]' if ':' in at[0] else at[0]}:{at[1]}"
        with console.status("loading the model ..."):
            from sdpipe.serve.server import Server

        def load() -> "list[Pipeline]":
            from sdpipe import Pipeline

            return [Pipeline(**each, **machine) for each in loaded]

        server = Server(
            load,
            api_key=api_key,
            queue=queue,
            join=join,
            max_pixels=max_pixels,
            max_steps=max_steps,
            allowed_hosts=allowed_host or (),
            cors=cors or (),
            grace=grace,
        )

        def tell() -> None:
            served = ", ".join(server.models)
            console.print_status(f"{served} at {url}, /v1 and /sdapi/v1; Ctrl-C ends it.")
            console.print_result(url)

        number = run(server, sock, tell)
    # A thread may be drawing or loading still.
    end_process(console.DONE if number == signal.SIGTERM else INTERRUPTED)


def _check(host: str, port: int, key: str | None, origins: list[str]) -> None:
    """Refuses what would let strangers in. Raises UsageError."""
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        rule = "is empty, or has spaces around it or letters that no header can hold"
        raise UsageError("--api-key", rule, "use letters, digits and signs of ASCII")
    if host not in LOCAL and key is None:
        remedy = "set a key with --api-key or SDPIPE_API_KEY, or leave --host out"
        raise UsageError(f"--host {host}", "lets every machine of the network draw here", remedy)
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}", "is no port", "use 1 to 65535, or 0 for a free one")
    for origin in origins:
        scheme, _, rest = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not rest or "/" in rest):
            remedy = "give one as in https://example.org, without a path"
            raise UsageError(f"--cors {origin}", "is no origin", remedy)
    os.environ.pop("SDPIPE_API_KEY", None)  # no process that is started from here needs it


def _look_at(loaded: list[dict[str, Any]], dtype: str) -> None:
    """Checks the models that are here already, without torch. Raises ModelError."""
    from sdpipe.components import inspect_model

    for each in loaded:
        inspect_model(**each, dtype=dtype)
