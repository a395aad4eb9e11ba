"""The pages of the reference that follow from the code: `make golden` writes them."""

from pathlib import Path

from sdpipe.settings import DEFAULT_OF, RULES

FOLDER = Path(__file__).parents[2] / "docs" / "reference"

SETTINGS = """# Settings

What `Pipeline.generate` takes by name, and `sdpipe generate` as options: `guidance_rescale` is
`--guidance-rescale`.
Every value is checked before a model is loaded.

| setting | means | default |
|---|---|---|
"""
CLI = """# Command line

`sdpipe --help`, and the help of every command.
[Exit statuses and environment variables](exit-status-and-environment.md) have a page of their own.
"""


def settings_page() -> str:
    """A line for each setting: its name, its help, and what counts where it is left out."""
    return SETTINGS + "".join(
        f"| `{name}` | {rule.help} | {rule.unset or _default(name)} |\n"
        for name, rule in RULES.items()
    )


def cli_page(pages: list[tuple[str, str]]) -> str:
    """The help of every command, below a heading each.

    pages: the command that shows it, such as "sdpipe show steps --help", and its text.
    """
    blocks = [CLI]
    for command, text in pages:
        lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
        blocks.append(f"\n## {command.removesuffix(' --help')}\n\n```\n{lines.rstrip()}\n```\n")
    return "".join(blocks)


def _default(name: str) -> str:
    default = DEFAULT_OF[name]
    return str(default) if isinstance(default, bool | int) else ""
