"""All that sdpipe says, as text to review by eye: `make golden` writes it to tests/golden/.

messages.txt has every error, warning and status line of the source, read with ast, one a line:
its kind, then value | rule | remedy, with what is filled in between braces. help.txt has the
--help of every command.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import sdpipe

ROOT = Path(sdpipe.__file__).parent
FOLDER = Path(__file__).parents[1] / "golden"
STATUS = {"say", "print_status", "log", "status", "bar"}
TEXT = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.IfExp)
USAGE = {"BadParameter", "fail"}  # typer's

PAGES = """
import contextlib, io, json, typer.main
from sdpipe.cli import main
from sdpipe.cli.app import app
def pages(command, words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--help"]) == 0
    yield [" ".join(["sdpipe", *words, "--help"]), out.getvalue()]
    for name, child in getattr(command, "commands", {}).items():
        yield from pages(child, [*words, name])
print(json.dumps(list(pages(typer.main.get_command(app), []))))
"""


def error_names(trees: list[ast.Module]) -> set[str]:
    """The names of `SdpipeError` and of every class that descends from it."""
    names, before = {"SdpipeError"}, 0
    classes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    while len(names) > before:
        before = len(names)
        names |= {c.name for c in classes if names & {ast.unparse(base) for base in c.bases}}
    return names


def template(node: ast.expr) -> str:
    """A text as the source has it: what is filled in stands between braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(template, parts))
        case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
            how = f"!{chr(conversion)}" if conversion > 0 else ""
            return f"{{{ast.unparse(value)}{how}{f':{template(spec)}' if spec else ''}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left) + template(right)
        case ast.IfExp(body=body, orelse=other):
            return f"{{{template(body)} / {template(other)}}}"
    return f"{{{ast.unparse(node)}}}"


def calls(tree: ast.Module, errors: set[str]) -> Iterator[tuple[str, list[ast.expr]]]:
    """The kind and the parts of every message that a file makes."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        parts = [*node.args, *(word.value for word in node.keywords)]
        if name in errors:
            yield name, parts
        elif name == "warn" and "SdpipeWarning" in map(ast.unparse, parts):
            yield "warning", parts[:1]
        elif name in USAGE and parts:
            yield "UsageError", parts[:1]
        elif name in STATUS and parts and isinstance(parts[0], TEXT):
            yield "status", parts[:1]


def messages() -> str:
    """Every message, by file, sorted within it."""
    paths = sorted(path for path in ROOT.rglob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    errors, blocks = error_names(trees), []
    for path, tree in zip(paths, trees, strict=True):
        lines = {
            f"  {kind}: {' '.join(' | '.join(map(template, parts)).split())}"
            for kind, parts in calls(tree, errors)
        }
        if lines:
            blocks.append([path.relative_to(ROOT).as_posix(), *sorted(lines), ""])
    return "\n".join(chain.from_iterable(blocks))


def help_pages() -> str:
    """The --help of every command, 100 columns wide, without colour."""
    system = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PAGES],
        capture_output=True,
        check=True,
        text=True,
        encoding="utf-8",
        env={**system, **plain, "PYTHONPATH": str(ROOT.parent)},
    )
    pages = [f"$ {line}\n{text}" for line, text in json.loads(done.stdout)]
    return "\n".join(line.rstrip() for line in "\n".join(pages).splitlines()) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "messages.txt").write_text(messages(), encoding="utf-8")
    (FOLDER / "help.txt").write_text(help_pages(), encoding="utf-8")


if __name__ == "__main__":
    main()
