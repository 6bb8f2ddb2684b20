"""A recipe as YAML, with the meaning and range of each field above it if asked for."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from distilledge.pipeline.recipe import Recipe
from distilledge.pipeline.recipe_paths import FieldNote, fields


class _Writer(RoundTripRepresenter):
    """Writes ``null`` where the base class writes nothing."""


def _null(writer: _Writer, _value: None) -> ScalarNode:
    node: ScalarNode = writer.represent_scalar("tag:yaml.org,2002:null", "null")
    return node


_Writer.add_representer(type(None), _null)


def recipe_to_yaml(recipe: Recipe, *, comments: bool = False) -> str:
    """Every field in order; with ``comments``, its meaning and range above it. ``load_recipe`` reads it back."""
    tree = _tree(recipe.model_dump(mode="json", by_alias=True))
    if comments:
        for note in fields():
            _comment(tree, note.path.split("."), note)
    out, yaml = io.StringIO(), YAML()
    yaml.Representer = _Writer
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(tree, out)
    return out.getvalue()


def _tree(value: Any) -> Any:
    """Sections in block style, lists of plain values on one line."""
    if isinstance(value, Mapping):
        return CommentedMap((key, _tree(item)) for key, item in value.items())
    if isinstance(value, list):
        items = CommentedSeq(_tree(item) for item in value)
        if not any(isinstance(item, CommentedMap) for item in items):
            items.fa.set_flow_style()
        return items
    return value


def _comment(tree: Any, path: Sequence[str], note: FieldNote) -> None:
    """Above the field, at its indentation; items of lists and sections that are null in this recipe are passed over."""
    for part in path[:-1]:
        tree = tree.get(part) if isinstance(tree, CommentedMap) else None
    if isinstance(tree, CommentedMap) and path[-1] in tree:
        text = f"{note.meaning.replace('``', '`')} ({note.takes})".strip()
        indent = 2 * (len(path) - 1)
        tree.yaml_set_comment_before_after_key(path[-1], before=textwrap.fill(text, 116 - indent), indent=indent)
