"""All that sdpipe says, as text to review by eye: `make golden` writes it.

tests/golden/messages.txt has every error, warning and status line of the source, read with ast,
one a line: its kind, then value | rule | remedy, with what is filled in between braces.
docs/reference/ has the --help of every command, and the table of settings.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from support.reference import FOLDER as REFERENCE
from support.reference import cli_page, settings_page

import sdpipe

ROOT = Path(sdpipe.__file__).parent
MESSAGES = Path(__file__).parents[1] / "golden" / "messages.txt"
STATUS = {"say", "print_status", "log", "status", "bar"}
TEXT = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.IfExp)
USAGE = {"BadParameter", "fail"}  # typer's

SHOW_HELP = """
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


def template(node: ast.expr, texts: dict[str, list[str]]) -> str:
    """A text as the source has it, with what is filled in between braces.

    texts: the texts that a variable may hold; they stand behind its name, {remedy: A / B}.
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(template(part, texts) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) if name in texts:
            return template(node.value, texts)
        case ast.FormattedValue(value=value, conversion=conversion, format_spec=spec):
            how = f"!{chr(conversion)}" if conversion > 0 else ""
            form = f":{template(spec, texts)}" if spec else ""
            return f"{{{ast.unparse(value)}{how}{form}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, texts) + template(right, texts)
        case ast.IfExp(body=body, orelse=other):
            return f"{{{template(body, texts)} / {template(other, texts)}}}"
        case ast.Name(id=name) if name in texts:
            return f"{{{name}: {' / '.join(texts[name])}}}"
    return f"{{{ast.unparse(node)}}}"


def sentences(scope: ast.AST, known: dict[str, list[str]]) -> dict[str, list[str]]:
    """The sentences that a function's variables may hold, beside those `known` around it."""
    found: dict[str, list[str]] = {}
    for node in nodes_of(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if isinstance(value, TEXT):
                text = template(value, {})
                if len(re.findall(r"\b[a-z]+ (?=[a-z])", text)) > 2 and text not in found.get(
                    name, ()
                ):
                    found.setdefault(name, []).append(text)
    return known | found


def nodes_of(scope: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function or module but for those of the functions in it."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef):
            yield from nodes_of(node)


def calls(scope: ast.AST, errors: set[str], known: dict[str, list[str]]) -> Iterator[str]:
    """Every message that a module or function makes."""
    texts = sentences(scope, known)
    for node in nodes_of(scope):
        if isinstance(node, ast.FunctionDef):
            yield from calls(node, errors, texts)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rpartition(".")[2]
        parts = [*node.args, *(word.value for word in node.keywords)]
        if name in errors:
            kind = name
        elif name == "warn" and ("SdpipeWarning" in map(ast.unparse, parts) or len(parts) == 1):
            kind, parts = "warning", parts[:1]
        elif name in USAGE and parts:
            kind, parts = "UsageError", parts[:1]
        elif name in STATUS and parts and isinstance(parts[0], TEXT):
            kind, parts = "status", parts[:1]
        else:
            continue
        yield f"{kind}: {' '.join(' | '.join(template(part, texts) for part in parts).split())}"


def messages() -> str:
    """Every message, by file, sorted within it."""
    paths = sorted(path for path in ROOT.rglob("*.py"))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in paths]
    errors, blocks = error_names(trees), []
    for path, tree in zip(paths, trees, strict=True):
        lines = {f"  {line}" for line in calls(tree, errors, {})}
        if lines:
            blocks.append([path.relative_to(ROOT).as_posix(), *sorted(lines), ""])
    return "\n".join(chain.from_iterable(blocks))


def help_page() -> str:
    """The --help of every command, 100 columns wide, without colour."""
    system = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW_HELP],
        capture_output=True,
        check=True,
        text=True,
        encoding="utf-8",
        env={**system, **plain, "PYTHONPATH": str(ROOT.parent)},
    )
    return cli_page(json.loads(done.stdout))


PAGES = {
    MESSAGES: messages,
    REFERENCE / "cli.md": help_page,
    REFERENCE / "settings.md": settings_page,
}


def main() -> None:
    for path, make in PAGES.items():
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
