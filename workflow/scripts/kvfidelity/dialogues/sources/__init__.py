"""Readers of dialogue files, one file per format family; each yields raw conversations."""

from kvfidelity.dialogues.sources.files import read_conversations
from kvfidelity.dialogues.sources.raw import Message, RawConversation, SourceCounts

__all__ = ["Message", "RawConversation", "SourceCounts", "read_conversations"]
