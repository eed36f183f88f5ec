"""The halves of a data set, so that nothing is tuned or trained on what results are reported on.

Which half a conversation is in follows from its texts: `selection.split_of`.
"""

from __future__ import annotations

#: Numbers are tuned and models trained on the first; results are reported on the second.
SPLITS = DEVELOPMENT, TEST = ("development", "test")
