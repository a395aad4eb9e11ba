"""For MkDocs: links from a page to a file of the repository lead to the repository.

On GitHub the pages are read where they lie, and such links work as they are. Here each is checked,
and led to `repo_url`; without one its text alone remains.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Leads links that leave docs/ to the repository."""
    folder = Path(page.file.abs_src_path).parent

    def lead(match: re.Match[str]) -> str:
        text, target, anchor = match[1], (folder / match[2]).resolve(), match[3] or ""
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_path}: {match[2]} does not exist")
        if not config.repo_url:
            return text
        kind = "tree" if target.is_dir() else "blob"
        path = target.relative_to(ROOT).as_posix()
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor})"

    return LINK.sub(lead, markdown)
