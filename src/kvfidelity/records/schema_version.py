"""The version of the artifacts' columns; in a module of its own, for rules are planned by it."""

from __future__ import annotations

#: One higher with every change that makes older artifacts unreadable: all of them are made again.
SCHEMA_VERSION = 5
