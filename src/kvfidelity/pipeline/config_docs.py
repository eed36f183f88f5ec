"""config/README.md, written from the schemas: `python -m kvfidelity.pipeline.config_docs >
config/README.md`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvfidelity.judges.registry import judge_schema, known_judges
from kvfidelity.pipeline.setting_schemas import config_schema, healing_names, policy_schemas

INTRO = """# Configuration

Generated from the package's schemas by
`python -m kvfidelity.pipeline.config_docs`; a test keeps it current.

`config/config.yaml` is the default. Put what differs into another file and add it with
`--configfile mine.yaml`: sections are merged key by key. A file with all of `models`, `datasets`,
`policies` and `thresholds` stands alone. (`--config a.b=0.1` turns numbers into strings; do not use
it for nested keys.)

Sizes are written `600MB` (10^6 bytes), `600MiB` (2^20 bytes), `5600tok` (tokens) or `0.7win` (share
of the trained window). For what a size is in tokens and bytes of
a model, run `python -m kvfidelity.pipeline.cache_sizes`.
"""

#: Keys of every judge.
BASE = ("kind", "rubric")
SECTIONS = {
    "model": "`models`: each entry",
    "adapter": "`models`: `adapter` of an entry with `source: adapter` "
    "([finetuning.md](../docs/finetuning.md))",
    "dataset": "`datasets`: each entry",
    "threshold": "`thresholds`: each entry",
    "session": "`session`",
    "grid": "`grid`",
    "judge": "`judges`: each entry",
    "price": "`prices`: each entry",
    "reliability": "`reliability`",
    "report": "`report`",
}

TRIGGERS = """
Triggers, each only while the cache holds at least `at`:

| trigger | when the policy is asked | size after an eviction |
|---|---|---|
| `paper` | before a turn (without scores) and every decode step | the policy's own size |
| `turn` | before a turn's prompt is fed | `target` |
| `prompt` | once the prompt is fed, which is protected | `target` |
| `step` | before every decode step | `target` |
"""


def config_docs() -> str:
    """The whole file."""
    schema = config_schema()
    lines = [INTRO, "## Top level\n", *_table(schema["properties"], schema, schema.get("required"))]
    for name, heading in SECTIONS.items():
        entry = schema["$defs"][name]
        lines += [f"\n## {heading}\n"]
        lines += _table(entry["properties"], schema, entry.get("required"))
        lines += [TRIGGERS] if name == "threshold" else []
        lines += _judge_kinds() if name == "judge" else []
    lines += ["\n## Policies\n", "| kind | what it does | parameters |", "|---|---|---|"]
    for kind, policy in policy_schemas().items():
        lines.append(f"| `{kind}` | {policy['description']} | {_parameters_text(policy)} |")
    lines += [
        "\nEvery policy that evicts may also have `healing`: what is done about the gap that an "
        "eviction leaves, one of "
        + ", ".join(f"`{name}`" for name in healing_names())
        + " ([docs/healing.md](../docs/healing.md))."
    ]
    lines += ["\nTo write a policy, see [docs/extending.md](../docs/extending.md)."]
    return "\n".join(lines) + "\n"


def _judge_kinds() -> Iterator[str]:
    for kind, judge in known_judges().items():
        schema = judge_schema(judge)
        options = {key: about for key, about in schema["properties"].items() if key not in BASE}
        yield f"\n`kind: {kind}`: {schema['description']}"
        if options:
            yield ""
            yield from _table(options, schema, schema["required"])
    yield "\nTo write a kind of judge, see [docs/extending.md](../docs/extending.md)."


def _table(
    properties: Mapping[str, Any], root: Mapping[str, Any], required: list[str] | None
) -> Iterator[str]:
    yield "| key | values | default | meaning |"
    yield "|---|---|---|---|"
    for key, raw in _flattened(properties, root):
        default = "required" if key in (required or []) else _default_text(raw)
        yield f"| `{key}` | {_values_text(raw)} | {default} | {raw.get('description', '')} |"


def _flattened(
    properties: Mapping[str, Any], root: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, raw in properties.items():
        entry = _resolved(raw, root)
        inner = entry.get("properties")
        if inner and prefix == "" and "$ref" not in raw:
            yield from _flattened(inner, root, f"{key}.")
        else:
            yield prefix + key, entry


def _resolved(entry: Mapping[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" not in entry:
        return dict(entry)
    target = root["$defs"][entry["$ref"].rsplit("/", 1)[1]]
    return {**_resolved(target, root), **entry}


def _values_text(entry: Mapping[str, Any]) -> str:
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if "oneOf" in entry:
        return "`all` or a list"
    kind = entry.get("type", "")
    names = [kind] if isinstance(kind, str) else kind
    text = " or ".join("entries by name" if name == "object" else name for name in names)
    bounds = [
        f"{sign} {entry[key]:,}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in entry
    ]
    formats = {
        "size": "size",
        "size_or_share": "size or share",
        "size_in_bytes": "size in bytes",
    }
    if entry.get("format") in formats:
        return f"{formats[entry['format']]} ({text})"
    return " ".join([text, *bounds])


def _default_text(entry: Mapping[str, Any]) -> str:
    if "default" not in entry:
        return ""
    value = entry["default"]
    return (
        "none" if value is None else f"`{value}`".replace("True", "true").replace("False", "false")
    )


def _parameters_text(policy: Mapping[str, Any]) -> str:
    parts = []
    for name, entry in policy["properties"].items():
        if name in ("kind", "healing"):
            continue
        default = f" = {entry['default']}" if "default" in entry else ""
        parts.append(f"`{name}{default}`: {entry['description']}")
    return "; ".join(parts)


if __name__ == "__main__":
    print(config_docs(), end="")
