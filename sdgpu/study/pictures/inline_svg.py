"""Figures as drawings inside a page of HTML, in the colours of the page."""

from __future__ import annotations

import io
import re

from matplotlib import rc_context
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from sdgpu.study.pictures.palette import PALETTE

__all__ = ["inline_svg"]

COLOURS = {"#000000": "currentColor", "#e6e6e6": "var(--line)", "#cccccc": "var(--line)"}


def inline_svg(figure: Figure, name: str) -> str:
    """A figure for a page of HTML: text stays text, black becomes the colour of the page's text.

    Parameters
    ----------
    figure : Figure
    name : str
        Different for each figure of a page: ids within it derive from it.
    """
    for axes in figure.axes:  # thousands of rectangles are one picture
        for mesh in axes.collections:
            if isinstance(mesh, QuadMesh):
                mesh.set_rasterized(True)
    image = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(image, format="svg", transparent=True, dpi=120, metadata={"Date": None})
    text = image.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, of_page in (*COLOURS.items(), (PALETTE[0], "currentColor")):
        text = text.replace(f"stroke: {colour}", f"stroke: {of_page}")
        text = text.replace(f"fill: {colour}", f"fill: {of_page}")
    text = text.replace(
        'style="fill: #ffffff', 'style="fill: var(--paper)'
    )  # of legends, not of texts
    # ids that something refers to, with the name before them; the others say nothing
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px sans-serif", text)
