"""Conversations: where they come from, how they are cleaned and selected, how they become tokens.

`formats` reads files into raw conversations, `cleaning` makes turns of them, `selection` decides
which stay and counts the others, `pool` is what is kept, `segments` turns it into token ids.
"""
