"""Put the dark image of a figure beside its light one.

MyST's figure directive takes one image. The dark one is written into the legend with the class ``page-dark``;
here it moves to its place below the light image, inside the same numbered figure. ``book.css`` shows one of the
two. (The theme's own class ``only-dark`` would hide the caption together with the image.)
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class LightDark(SphinxTransform):
    """Moves each ``page-dark`` image of a figure behind the figure's first image."""

    default_priority = 210  # after directives are parsed, before images are collected

    def apply(self, **options: object) -> None:
        for figure in list(self.document.findall(nodes.figure)):
            for image in list(figure.findall(nodes.image)):
                if "page-dark" in image["classes"] and image.parent is not figure:
                    _move(image, figure)


def _move(image: nodes.image, figure: nodes.figure) -> None:
    holder = image.parent
    holder.remove(image)
    figure.insert(1, image)
    if holder is not figure and not len(holder):
        holder.parent.remove(holder)


def setup(app: Sphinx) -> dict[str, object]:
    """Register the transform."""
    app.add_transform(LightDark)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
