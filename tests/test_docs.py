"""The pages: commands exist, links lead somewhere, and what runs prints what the page shows."""

import contextlib
import io
import re
import shlex

import pages
import pytest
import typer.main

from sdpipe.cli.app import app, main

PAGES = pages.pages()
COMMANDS = {
    shlex.join(command.words): command for page in PAGES for command in pages.commands(page)
}


def ids(page):
    return page.relative_to(pages.ROOT).as_posix()


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_has_options_that_exist(line):
    group, words = typer.main.get_command(app), COMMANDS[line].words
    if "<" in words:  # the shell's
        words = words[: words.index("<")]
    context = group.make_context("sdpipe", list(words))
    while hasattr(group, "commands"):
        name, group, words = group.resolve_command(context, words)
        context = group.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, anchor


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_the_lines_that_a_page_shows_of_a_file_are_in_it(page):
    text = page.read_text(encoding="utf-8")
    quotes = r"\]\((\.\./[^)]+\.py)\)[^\n]*:\n\n```python\n(.*?)^```"
    for target, lines in re.findall(quotes, text, re.DOTALL | re.MULTILINE):
        source = (page.parent / target).read_text(encoding="utf-8")
        assert all(line.strip() in source for line in lines.splitlines()), lines


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_that_runs_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in pages.commands(page):
        if command.runs:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                assert main(command.words) == 0, command.words
            assert command.printed == out.getvalue().splitlines()[: len(command.printed)]


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "learn"], ids=ids)
def test_every_exercise_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8").partition("## Try it")[2]
    for code in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        exec(compile(code, page.name, "exec"), {"__name__": "__main__"})
