"""YAML 1.2 text -> plain values, and the line and column of each of them. Duplicate keys and tabs are named by line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from distilledge.models.errors import UsageError

Location = Sequence[str | int]


class Document(NamedTuple):
    """A parsed file: its values, and the node graph that knows where they stood."""

    name: str
    data: Any
    root: Node | None

    def place(self, location: Location, *, key: bool = False) -> tuple[int, int]:
        """1-based line and column of a value (or of its key), or of the nearest thing above it that is in the file."""
        node, mark = self.root, (1, 1)
        for part in location:
            found = _step(node, part)
            if found is None:
                return mark
            name, node = found
            mark = _mark(name if key else node)
        return mark


def parse(text: str, name: str) -> Document:
    """Raises ``UsageError`` (exit 2) with ``name:line:column`` for anything that is not one clean YAML 1.2 document."""
    version = re.match(r"(?:\s|#[^\n]*\n)*%YAML[ \t]+(\S+)", text)
    if version and version[1] != "1.2":
        raise UsageError("E2012", f"recipes are YAML 1.2, not {version[1]}: {name}", "remove the %YAML line")
    try:
        root = _loader().compose(text)
        _refuse_duplicates(root, name)
        return Document(name, _loader().load(text), root)
    except YAMLError as error:
        raise _syntax(error, text, name) from None
    except (ValueError, RecursionError) as error:
        raise UsageError("E2012", f"a value that YAML cannot read ({error}): {name}", "quote it") from None


class _CoreSchema(SafeConstructor):
    """YAML 1.2's core schema has no dates: ``2024-02-30`` is text."""


_CoreSchema.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


def _loader() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _CoreSchema
    return yaml


def _syntax(error: YAMLError, text: str, name: str) -> UsageError:
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split("\n")[0]
    where, since = _where(error, text), ""
    if isinstance(error, MarkedYAMLError) and error.context_mark and error.context:
        since = f" ({error.context}, begun in line {error.context_mark.line + 1})"
    lines = text.splitlines()
    tab = 0 < where[0] <= len(lines) and "\t" in lines[where[0] - 1][: where[1]]
    hint = "YAML is indented with spaces: replace the tab" if tab else "correct that line, or quote the value"
    return UsageError("E2012", f"not valid YAML: {problem}{since}: {name}:{where[0]}:{where[1]}", hint)


def _where(error: YAMLError, text: str) -> tuple[int, int]:
    if isinstance(error, MarkedYAMLError) and (error.problem_mark or error.context_mark):
        mark = error.problem_mark or error.context_mark
        return mark.line + 1, mark.column + 1
    position = getattr(error, "position", None)
    if not isinstance(position, int):
        return 1, 1
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


def _refuse_duplicates(root: Node | None, name: str) -> None:
    lines = []
    for mapping in _mappings(root, set()):
        first: dict[tuple[str | None, str], Node] = {}
        for key, _ in mapping.value:
            if not isinstance(key, ScalarNode):
                continue
            earlier = first.setdefault((key.tag, key.value), key)
            if earlier is not key and key.tag != "tag:yaml.org,2002:merge":
                line, column = _mark(key)
                twice = f"`{key.value}` stands twice, in lines {_mark(earlier)[0]} and {line}"
                lines.append(f"{twice}: {name}:{line}:{column}")
    if lines:
        raise UsageError("E2013", "\n  ".join(lines), "remove one of the two")


def _mappings(node: Node | None, seen: set[int]) -> Iterator[MappingNode]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value, seen)
    elif isinstance(node, SequenceNode):
        for value in node.value:
            yield from _mappings(value, seen)


def _step(node: Node | None, part: str | int) -> tuple[Node, Node] | None:
    """Key and value node one level down; a list item is its own key."""
    if isinstance(node, MappingNode):
        return next(((k, v) for k, v in node.value if isinstance(k, ScalarNode) and k.value == str(part)), None)
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part], node.value[part]
    return None


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
