"""Readers of dialogue files: `files` reads JSON, JSONL and Parquet, each format has its own module.

A new format is one new file here that defines `FORMAT`; no list of formats is kept by hand.
"""

from kvfidelity.dialogues.formats.files import read_conversations
from kvfidelity.dialogues.formats.raw import Message, RawConversation, RawQuestion, SourceCounts

__all__ = ["Message", "RawConversation", "RawQuestion", "SourceCounts", "read_conversations"]
