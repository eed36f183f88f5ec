"""Where a captured decode step finds what of each lane: the table is written and read by this."""

#: Per lane: cached slots, next position, alive (0 or 1), slots that the buffers hold per kv head,
#: stride of positions between kv heads, slots that a row of scores holds, width and next place of
#: the ring of latest queries, addresses of the cosine and sine tables.
SEQUENCE_FIELDS = 10
#: Per layer and lane, addresses: keys, values, latest scores, accumulated scores, ring of queries
#: (0: none), positions.
LAYER_FIELDS = 6
