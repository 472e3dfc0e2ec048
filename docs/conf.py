"""How Sphinx builds the book: `make docs`."""

import importlib.metadata
import logging
import re
from pathlib import Path

from sphinx.application import Sphinx

project = "sa_railway"
author = "the developers of sa_railway"
release = importlib.metadata.version("sa-railway")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "sa_railway"

autodoc_typehints = "none"  # the signature shows them
autodoc_member_order = "bysource"
napoleon_use_ivar = True

# it announces its plugins to a logger that Sphinx shows
logging.getLogger("alembic").setLevel(logging.WARNING)


def write_llms_txt(app: Sphinx, error: Exception | None) -> None:
    """Write for language models (llmstxt.org): a list of the pages, and all of them as one text."""
    names = re.findall(r"^([a-z]+)$", Path(app.srcdir, "index.md").read_text(), re.MULTILINE)
    lead = Path(app.srcdir, "index.md").read_text().split("\n\n")[1]
    lines, pages = [f"# {project}\n\n> {' '.join(lead.split())}\n\n## Pages\n"], []
    for name in names:
        if name in ("api", "changelog"):  # made of other sources
            continue
        page = Path(app.srcdir, f"{name}.md").read_text()
        pages.append(page)
        title = page.splitlines()[0].removeprefix("# ")
        lines.append(f"- [{title}]({name}.html)")
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n")
    Path(app.outdir, "llms-full.txt").write_text("\n\n".join(pages))


def setup(app: Sphinx) -> None:
    app.connect("build-finished", write_llms_txt)
