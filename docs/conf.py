"""How Sphinx builds the pages: `python -m sphinx -W docs docs/_build/html`."""

import os
import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path += [str(DOCS / '_ext')]
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

project = 'jnl'
author = 'the authors of jnl'
copyright = 'the authors of jnl, Apache-2.0'
extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx_copybutton', 'pages']
exclude_patterns = ['_build', '_ext']

html_theme = 'furo'
html_title = 'jnl'
html_static_path = ['_static']
html_css_files = ['jnl.css']
html_show_sourcelink = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_prompt_text = r'>>> |\.\.\. '
copybutton_prompt_is_regexp = True

myst_heading_anchors = 3
myst_enable_extensions = ['dollarmath']
nb_execution_mode = 'force'
nb_execution_in_temp = True
nb_execution_timeout = 300  # seconds a cell
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = 'remove'
nb_merge_streams = True

maximum_signature_line_length = 79
nitpicky = True
smartquotes = False
default_role = 'name'
html_math_renderer = 'mathml'
add_function_parentheses = False
toc_object_entries_show_parents = 'hide'
