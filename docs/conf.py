"""How Sphinx builds the book: `make docs`."""

import importlib.metadata
import logging

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
