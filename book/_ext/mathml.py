"""Write equations as MathML, which browsers draw themselves: no script from the network, so pages read offline.

A command that the converter does not know fails the build instead of standing on the page as text.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.writers.html5 import HTML5Translator

_UNKNOWN = re.compile(r"<m[io]>\\([A-Za-z]+)</m[io]>")


def _mathml(node: nodes.Element, *, display: str) -> str:
    text = convert(node.astext(), display=display)
    unknown = _UNKNOWN.search(text)
    if unknown:
        raise ExtensionError(
            f"the equation {node.astext()!r} uses \\{unknown.group(1)}, which MathML conversion does not know"
        )
    return text


def _inline(self: HTML5Translator, node: nodes.Element) -> None:
    self.body.append(_mathml(node, display="inline"))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.Element) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math mathml"))
    self.body.append(_mathml(node, display="block"))
    self.body.append("</div>")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, object]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
