"""What each number of a table means that kernels read instead of a cache.

A table is two int64 tensors: a row for each sequence of the batch, of `SequenceField` in a decode
step (`step_table`, `decode`) or of `FeedField` in a forward that feeds several caches
(`feed_table`, `feed`), and a row of `LayerField` for each layer and sequence. Addresses are those
of device memory; 0 means that the buffer is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

Field = TypeVar("Field", bound=IntEnum)


class SequenceField(IntEnum):
    """What is the same for all layers of a sequence."""

    #: Cached slots.
    SLOTS = 0
    #: Position of the token that is fed next.
    NEXT_POSITION = 1
    #: 1 while the sequence decodes, 0 where the kernels skip it.
    ALIVE = 2
    #: Slots that the buffers of keys and values have room for, per kv head.
    CAPACITY = 3
    #: Elements from one kv head's positions to the next one's; 0 if all heads share them.
    POSITIONS_STRIDE = 4
    #: Slots that a row of attention scores has room for.
    SCORES_CAPACITY = 5
    #: Queries that the ring of latest queries holds, and the index that the next one is written to.
    RING_SIZE = 6
    RING_INDEX = 7
    #: Addresses of the fp32 tables of cosines and sines, [P, r / 2].
    COS = 8
    SIN = 9


class FeedField(IntEnum):
    """What is the same for all layers of a sequence while its tokens are fed with others'."""

    #: Slots before this forward, and tokens that it adds.
    SLOTS = 0
    COUNT = 1
    #: Row of its first new token among those of all sequences.
    FIRST_ROW = 2
    #: Slots of the sequences before it: where its rotated keys start.
    FIRST_SLOT = 3
    #: Token index and position of its first new token; those of the others follow.
    FIRST_TOKEN = 4
    FIRST_POSITION = 5
    #: Slots that the buffers of keys and values have room for, per kv head.
    CAPACITY = 6
    #: Elements from one kv head's positions to the next one's; 0 if all heads share them.
    POSITIONS_STRIDE = 7
    #: Slots that a row of attention scores has room for.
    SCORES_CAPACITY = 8
    #: 1 if this is a further chunk of the sequence's latest forward.
    CONTINUES = 9
    #: Queries that the ring of latest queries holds.
    RING_SIZE = 10
    #: 1 if the latest scores become those of the last new token alone.
    LATEST_IS_LAST = 11


class LayerField(IntEnum):
    """Addresses of one layer's buffers."""

    KEYS = 0
    VALUES = 1
    LATEST_SCORES = 2
    ACCUMULATED_SCORES = 3
    QUERY_RING = 4
    POSITIONS = 5


#: These two columns are adjacent; both grow by one with each decoded token.
GROWING = slice(SequenceField.SLOTS, SequenceField.NEXT_POSITION + 1)


def row(fields: type[Field], values: Mapping[Field, int]) -> list[int]:
    """The values in the order of the fields; all of them must be there."""
    return [values[field] for field in fields]
