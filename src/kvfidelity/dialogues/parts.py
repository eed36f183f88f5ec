"""The parts of a data set, so that nothing is tuned or trained on what results are reported on.

Which part a conversation is in follows from its texts: `selection.split_of`.
"""

from __future__ import annotations

#: Parts that are evaluated: numbers are tuned on the first and reported on the second, which is a
#: half of the dialogues.
SPLITS = ("development", "test")
#: The part that models are trained on; with `development` it is the other half.
TRAINING = "training"
PARTS = (*SPLITS, TRAINING)
