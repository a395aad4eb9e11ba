import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sdpipe


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_sdpipe_imports_no_torch():
    code = (
        "import sys, sdpipe; sdpipe.Settings(prompt='x'); sdpipe.UsageError; dir(sdpipe);"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    )
    assert python(code).strip() == ""


@pytest.mark.parametrize("line", [["generate", "x", "--steps", "0"], ["generate", "--help"]])
def test_to_refuse_and_to_help_imports_nothing_large(line):
    code = (
        f"import sys; from sdpipe.cli import main; main({line}); print();"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'scipy'} & set(sys.modules))"
    )
    assert python(code).endswith("\n\n")


@pytest.mark.parametrize("name", sdpipe._HOMES)
def test_every_public_name_is_what_it_says_whatever_was_imported_before(name):
    importlib.import_module("sdpipe.pipeline")  # and with it the modules of all stages
    value = getattr(sdpipe, name)
    assert value.__name__ == name
    assert value.__module__ == f"sdpipe.{sdpipe._HOMES[name]}"
    assert value.__doc__
    assert name in sdpipe.__all__
    assert name in dir(sdpipe)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(sdpipe.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert typed == {name: f"sdpipe.{home}" for name, home in sdpipe._HOMES.items()}


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_the_garbage_collector_waits_while_torch_and_diffusers_are_imported(before):
    code = (
        f"import gc, sys, sdpipe; gc.{before}(); done = lambda: 'Pipeline' in vars(sdpipe);"
        "seen = []; gc.callbacks.append(lambda *_: seen.append(done()));"
        "sdpipe.Pipeline; print('torch' in sys.modules, seen.count(False), gc.isenabled())"
    )
    assert python(code).split() == ["True", "0", str(before == "enable")]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sdpipe' has no attribute 'pipeline_of'"):
        _ = sdpipe.pipeline_of


def test_the_stages_do_not_know_what_comes_after_them():
    """Arrows run one way: cli, pipeline, stages, settings and errors."""
    folder = Path(sdpipe.__file__).parent
    forbidden = {
        "settings": {"cli", "pipeline", "png", "files", "components", "denoise"},
        "denoise": {"cli", "pipeline", "latents", "schedule", "components", "png", "files"},
        "prompt": {"cli", "pipeline", "latents", "denoise"},
        "latents": {"cli", "pipeline", "prompt"},
        "png": {"cli", "pipeline", "components", "latents"},
        "pipeline": {"cli", "png", "files"},
    }
    for name, others in forbidden.items():
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not imported & {f"sdpipe.{other}" for other in others}, name
    for path in folder.rglob("*.py"):
        if path.name not in ("cli.py", "__main__.py"):
            assert "sdpipe.cli" not in path.read_text(encoding="utf-8"), path
