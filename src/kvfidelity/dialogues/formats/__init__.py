"""Readers of dialogue files: `files` knows JSON, JSONL and Parquet, other modules one form each.

A new form is one new file here that defines `FORM`; nothing else has to be edited.
"""

from kvfidelity.dialogues.formats.files import read_conversations
from kvfidelity.dialogues.formats.raw import Message, RawConversation, RawQuestion, SourceCounts

__all__ = ["Message", "RawConversation", "RawQuestion", "SourceCounts", "read_conversations"]
