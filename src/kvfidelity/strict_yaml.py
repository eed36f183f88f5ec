"""YAML as it was meant: a key that is given twice is an error that names both lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kvfidelity.errors import UserError

#: Levels, digits of a number, and values of a file; the largest configuration here has 600 values.
MAX_DEPTH, MAX_NUMBER, MAX_VALUES = 50, 100, 100_000
NUMBER = re.compile("[0-9a-fA-FxXo_:.eE+-]+")
#: Tags that a value may have, for they do not change how its text is read.
TAGS = {None, "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}
# The same grammar in C, where PyYAML was built with it.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path) -> Any:
    """A file's content; None for an empty file.

    Raises:
        UserError: it cannot be read, is not YAML, or has a key twice in one mapping.
    """
    text = ""
    try:
        text = file.read_text(encoding="utf-8")
        _refuse_excess(text)
        found = list(duplicate_keys(text))
        content = yaml.load(text, LOADER)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; correct its name") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as YAML: {_reason(error, text)}") from None
    if found:
        raise UserError("\n".join(f"{file}: {message}" for message in found))
    return content


def duplicate_keys(text: str) -> Iterator[str]:
    """One message for each key that stands twice in one mapping, at any level.

    YAML parsers take the last of them and say nothing.

    Raises:
        yaml.YAMLError: the text is not YAML.
    """
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            yield from _duplicates(node, (), loader, set())
    finally:
        loader.dispose()


def _refuse_excess(text: str) -> None:
    """Bound depth, numbers, tags and what aliases stand for, before values are made of them.

    Raises:
        ValueError: what is too much.
    """
    depth, total = 0, 0
    sizes: dict[str, int] = {}
    open_anchors: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} is unknown or stands in itself")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            # PyYAML makes numbers, dates and more of a tagged text, and crashes if it cannot.
            tag = getattr(event, "tag", None)
            if tag not in TAGS:
                name = str(tag).replace("tag:yaml.org,2002:", "!!")[:60]
                line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
                raise ValueError(f"{line}the tag {name!r} is not read; remove it")
        if isinstance(event, yaml.ScalarEvent):
            if (
                event.implicit[0]
                and len(event.value) > MAX_NUMBER
                and NUMBER.fullmatch(event.value)
            ):
                raise ValueError(f"a number has more than {MAX_NUMBER} digits")
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append((event.anchor, total))
            if event.anchor:
                sizes.pop(event.anchor, None)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            anchor, before = open_anchors.pop()
            if anchor:
                sizes[anchor] = total - before + 1
        if depth > MAX_DEPTH:
            raise ValueError(f"its values are nested more than {MAX_DEPTH} levels deep")
        if total > MAX_VALUES:
            raise ValueError(
                f"it has more than {MAX_VALUES} values, counted as its aliases repeat them"
            )


def _duplicates(
    node: yaml.Node, path: tuple[str, ...], loader: Any, seen: set[int]
) -> Iterator[str]:
    if id(node) in seen:
        return  # an alias of what was looked at
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _duplicates(item, (*path, str(number)), loader, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[Any, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        # `7` and `007` are one number, and one key.
        merge = key.tag == "tag:yaml.org,2002:merge"
        name = "<<" if merge else loader.construct_object(key)
        line = key.start_mark.line + 1
        if name in lines:
            where = ".".join((*path, key.value))
            yield f"{where} is given twice, in lines {lines[name]} and {line}; remove or rename one"
        lines.setdefault(name, line)
        yield from _duplicates(value, (*path, key.value), loader, seen)


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        hint = " (indent with spaces, not with tabs)" if _has_tab(text, mark.line) else ""
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}{hint}"
    return " ".join(str(error).split())


def _has_tab(text: str, line: int) -> bool:
    lines = text.splitlines()
    return line < len(lines) and "\t" in lines[line][: -len(lines[line].lstrip()) or None]
