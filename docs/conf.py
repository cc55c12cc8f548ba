"""How `make docs` builds the pages and the API reference; Sphinx reads this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import llama_index.core  # noqa: F401 -- autodoc would import it with TYPE_CHECKING on, and fail
from sphinx.application import Sphinx

import llavakit

project = "llavakit"
author = "The llavakit authors"
release = version = llavakit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "llavakit"

# Docstrings are Google's style; what the package is typed with stands in the signatures.
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
# Pages name files of the repository beside pages of each other.
myst_url_schemes = ["http", "https", "mailto"]


def setup(app: Sphinx) -> None:
    """Keep napoleon from taking the words before a property's first colon for its type."""

    def process(app, what, name, obj, options, lines):  # noqa: ANN001, ANN202
        if what in ("property", "attribute"):
            lines.insert(0, "")

    app.connect("autodoc-process-docstring", process, priority=400)
