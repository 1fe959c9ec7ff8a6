"""The documentation site: Sphinx with MyST-NB and the pydata theme. `make docs` builds it without the network.

Pages are Markdown, so that they also read well on a code host; tutorials are Markdown notebooks, which are executed
when the site is built. API reference and options are made of the package by `extensions/`, in `generated/`.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `openedm` in tutorials
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "src")]

from openedm import __version__  # noqa: E402  # the path is set above

project = "openedm"
author = "The openedm authors"
release = version = __version__

extensions = ["myst_nb", "api_reference", "option_reference", "code_host"]
root_doc = "index"
exclude_patterns = ["_build", "extensions"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the first heading of a room's docstring may be of any level
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries = False
maximum_signature_line_length = 90
python_display_short_literal_types = True

# Tutorials are executed unless OPENEDM_DOCS_EXECUTE=off; an error in one is an error of the build.
os.environ["TQDM_DISABLE"] = "1"  # bars write a line for every step where there is no terminal
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # of tqdm, where ipywidgets are not installed
nb_execution_mode = os.environ.get("OPENEDM_DOCS_EXECUTE", "force")
if nb_execution_mode == "off":
    suppress_warnings.append("myst-nb.lexer")  # the kernel tells which language cells are in
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

html_theme = "pydata_sphinx_theme"
html_title = f"openedm {release}"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "openedm"},
    "header_links_before_dropdown": 7,
    "show_nav_level": 2,
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
copyright = "The openedm authors, Apache-2.0"
