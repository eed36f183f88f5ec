"""A judge's endpoint: its name, and what `base_url` and `api_key_env` may be.

Possible secrets are never shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

#: Where requests go without a `base_url`, whatever the environment of the `openai` client says.
OPENAI_URL = "https://api.openai.com/v1"
#: Names of environment variables by convention. No provider's keys look like this: they have small
#: letters or dashes.
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


def endpoint_name(entry: Mapping[str, Any]) -> str:
    """What tells an endpoint from others: the form of its API and its address.

    Args:
        entry: options of a judge of kind `openai`, with defaults.
    """
    return f"{entry['api']} {(entry['base_url'] or OPENAI_URL).rstrip('/')}"


def url_fault(url: str | None) -> str | None:
    """What is wrong with an endpoint's address; None if it can be used."""
    if url is None:
        return None
    if not url.isprintable() or " " in url:
        return "the address has a space, a line break or another such character; remove it"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except UnicodeError:
        return "the address has no valid host name; correct it"
    except ValueError as error:
        what = "its port" if "ort" in str(error) else "its host"
        return f"{what} is not valid; write the address as https://host:port/v1"
    if parts.username is not None or parts.password is not None:
        return (
            "the address holds a user name or a password, which results and logs would show; "
            "remove it, and put the key into the environment variable that `api_key_env` names"
        )
    if parts.query or parts.fragment:
        return (
            "the address has a part after `?` or `#`, which is not sent and may be a key; remove "
            "it (`api_key_env` names the environment variable with the key)"
        )
    if parts.scheme not in ("http", "https"):
        return "the address must begin with https:// or http://"
    if not host:
        return "the address names no host; write it as https://host/v1"
    return None


def variable_fault(name: str | None) -> str | None:
    """What is wrong with the name of a key's variable; None if it can be one."""
    if name is None or VARIABLE.fullmatch(name):
        return None
    return (
        "the value is not the name of an environment variable (capital letters, digits and "
        "underscores, such as OPENAI_API_KEY); if it is the key itself, put the key into a "
        "variable, write the variable's name here, and replace the key if this file was shared"
    )
