"""HTML and SVG by functions: what is not markup already is escaped; no text of a data set becomes an element."""

from __future__ import annotations

import html

Attribute = str | int | float


class Markup(str):
    """Text that is markup. Made by ``el`` only."""

    __slots__ = ()


def el(tag: str, attributes: dict[str, Attribute] | None = None, *children: str) -> Markup:
    """An element; children that are not ``Markup`` are escaped. Coordinates are written with two decimals."""
    words = "".join(f' {name}="{html.escape(_attribute(v))}"' for name, v in (attributes or {}).items())
    if tag in VOID:
        return Markup(f"<{tag}{words}>")
    return Markup(f"<{tag}{words}>{join(children)}</{tag}>")


VOID = ("meta", "img", "br")


def join(children: list[Markup] | tuple[str, ...]) -> Markup:
    """Children in a row, escaped where they are not markup."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(child) for child in children))


def _attribute(value: Attribute) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
