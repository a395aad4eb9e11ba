"""The house: who imports whom, how long its files are, and what `import sdpipe` leaves out."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sdpipe

ROOT = Path(sdpipe.__file__).parent
STAGES = (
    *("values", "settings", "prompt", "latents", "schedule", "guidance", "denoise", "sampling"),
    *("batches", "canvas", "plan", "components", "pipeline"),
)
CONSTANTS = "settings.[A-Z][A-Z]*"

# What each file or room of the root may import besides `errors` and itself.
MAY_IMPORT = {
    "errors": (),
    "values": (),
    "settings": ("values", "prompt.syntax"),
    "prompt": ("values",),
    "latents": ("runtime",),
    "schedule": (CONSTANTS, "runtime"),
    "guidance": ("values",),
    "denoise": ("guidance", "schedule"),
    "sampling": (*STAGES[:7], "canvas", "components", "runtime"),
    "batches": ("prompt", "components"),
    "canvas": ("io", "settings"),
    "plan": ("canvas", "settings", "values"),
    "components": ("loading", "latents", "prompt", "runtime"),
    "pipeline": (*STAGES[:-1], "runtime"),
    "loading": ("runtime", CONSTANTS, "prompt.vocabulary", "io.content", "io.files"),
    "runtime": (),
    "io": ("settings", "values"),
    "show": (*STAGES, "io", "runtime"),
    "metadata": (*STAGES, "io", "loading", "runtime"),
    "batch": (*STAGES, "io", "runtime", "metadata"),
    "sweep": (*STAGES, "io", "runtime", "metadata", "batch"),
    "training": (*STAGES[:7], "components", "loading", "runtime", "io"),
    "serve": (*STAGES, "io", "runtime", "metadata", "show", "batch"),
    "doctor": ("loading", "runtime", "io", "schedule", "pipeline"),
    "cli": ("*",),
    "__init__": (),
    "__main__": ("cli",),
}
INSIDE_FUNCTIONS = {("pipeline", "metadata")}  # Result.save and Pipeline.replay hand on to it


def imported(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """What a file imports of sdpipe, as "room.name", and whether inside a function."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names]
    else:
        inside = inside or isinstance(node, ast.FunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from imported(child, inside)
        return
    for name in names:
        assert not name.startswith("."), f"relative import of {name}"
        if name.startswith("sdpipe."):
            yield name.removeprefix("sdpipe."), inside


def wrong_arrows() -> Iterator[tuple[str, str]]:
    """The pairs of importing and imported room that the table has not."""
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        allowed = ("errors", "__version__", room, *MAY_IMPORT.get(room, ()))
        for name, inside in imported(ast.parse(path.read_text(encoding="utf-8"))):
            arrow = (room, name.partition(".")[0])
            if not any(fnmatchcase(f"{name}.", f"{pattern}.*") for pattern in allowed) and not (
                inside and arrow in INSIDE_FUNCTIONS
            ):
                yield arrow


def test_imports_run_one_way():
    TopologicalSorter({room: MAY_IMPORT[room] for room in MAY_IMPORT}).prepare()  # no cycle
    assert set(wrong_arrows()) == set(), "the table MAY_IMPORT does not allow these"


def test_no_file_is_long_without_a_reason():
    """A file of more than 300 lines says in two lines of its docstring why: "300 lines"."""
    texts = {path: path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")}
    long = {
        path.relative_to(ROOT).as_posix() for path, text in texts.items()
        if text.count("\n") > 300 and "300 lines" not in (ast.get_docstring(ast.parse(text)) or "")
    }  # fmt: skip
    assert long == set()


def test_the_readme_of_the_package_names_every_file_and_room_of_the_root():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in ROOT.glob("*.py")}
    rooms = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} | {"models/"}
    named = set(re.findall(r"`(\w+(?:\.py|/))`", text))
    assert named == files | rooms
    assert len(files) <= 16
    assert len(text.splitlines()) <= 30


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_sdpipe_imports_no_torch():
    code = (
        "import sys, sdpipe; sdpipe.Settings(prompt='x'); sdpipe.UsageError; dir(sdpipe);"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    )
    assert python(code).strip() == ""


@pytest.mark.parametrize("line", [["generate", "x", "--steps", "0"], ["generate", "--help"]])
def test_refusals_and_help_import_nothing_large(line):
    code = (
        f"import sys; from sdpipe.cli import main; main({line}); print();"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'scipy'} & set(sys.modules))"
    )
    assert python(code).endswith("\n\n")


@pytest.mark.parametrize("name", [name for name in sdpipe.__all__ if name != "__version__"])
def test_every_public_name_is_there_whatever_was_imported_before(name):
    importlib.import_module("sdpipe.pipeline")  # and with it the modules of all stages
    value = getattr(sdpipe, name)
    assert value.__name__ == name
    assert value.__module__.startswith("sdpipe.")
    assert value.__doc__
    assert name in dir(sdpipe)


@pytest.mark.slow
def test_the_garbage_collector_waits_while_torch_and_diffusers_are_imported():
    code = (
        "import gc, sys, sdpipe; done = lambda: 'Pipeline' in vars(sdpipe);"
        "seen = []; gc.callbacks.append(lambda *_: seen.append(done()));"
        "sdpipe.Pipeline; print('torch' in sys.modules, seen.count(False), gc.isenabled());"
        "del sdpipe.Pipeline; gc.disable(); sdpipe.Pipeline; print(done(), gc.isenabled())"
    )
    assert python(code).split() == ["True", "0", "True", "True", "False"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="pipeline_of"):
        _ = sdpipe.pipeline_of
