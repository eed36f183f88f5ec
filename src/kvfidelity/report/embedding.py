"""What may stand in a page: scripts that it allows, data and drawings that close no element."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup


def security_policy(script: str) -> str:
    """What a browser lets the page do: its one script, its styles, its images; no request."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def as_json(cells: Mapping[str, Any]) -> str:
    """JSON that can stand in a page: it closes no element, and a browser can read every number."""
    return json.dumps(cells, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def inline_svg(svg: str, name: str) -> Markup:
    """An SVG to stand in the page, which describes it as one image.

    Every figure numbers its clip paths from zero, so its name makes them different.

    What its marks stand for moves from `aria-label` to `data-label`, where the page's script finds
    it; the other roles and labels inside would only be read out against the image's own.
    """
    marks = re.sub(r'aria-label="([^"]*)" role="graphics-symbol"', r'data-label="\1"', svg)
    marks = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', marks)
    marks = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", marks)
    return Markup(re.sub(r' (role|aria-[a-z]+)="[^"]*"', "", marks))
