# [Task]: T041 [From]: specs/requirements.md
"""Grouped bars as SVG, on a ground of their own, so that any page may show them."""

from collections.abc import Mapping, Sequence
from html import escape

COLOURS = ("#0b6e4f", "#d1495b", "#3066be", "#9a9a9a")
WIDTH = 760
LEFT, RIGHT, TOP, BOTTOM = 140, 80, 76, 16
BAR, GAP = 15, 14


def chart(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """A group of bars for each key, a bar for each of its figures: the same names in each group."""
    names = list(next(iter(groups.values())))
    most = max(max(figures.values()) for figures in groups.values())
    scale = (WIDTH - LEFT - RIGHT) / most
    height = TOP + len(groups) * (len(names) * BAR + GAP) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff" stroke="#ddd"/>',
        _text(20, 28, title, 'font-size="15" font-weight="600"'),
        *_legend(names),
    ]
    y = TOP
    for group, figures in groups.items():
        middle = y + len(names) * BAR / 2 + 4
        parts.append(_text(LEFT - 10, middle, group, 'text-anchor="end" font-weight="600"'))
        for colour, figure in zip(COLOURS, figures.values(), strict=True):
            width = figure * scale
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>'
            )
            parts.append(_text(LEFT + width + 6, y + BAR - 4, f"{figure:,.0f}", 'font-size="11"'))
            y += BAR
        y += GAP
    return "\n".join([*parts, "</svg>\n"])


def _legend(names: Sequence[str]) -> list[str]:
    parts = []
    for n, (colour, name) in enumerate(zip(COLOURS, names, strict=True)):
        x = 20 + n * 150
        parts.append(f'<rect x="{x}" y="44" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 54, name))
    return parts


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
