"""The kinds of replies on which a judge is tested; estimates count them before anything is made."""

from __future__ import annotations

GOOD = "good"
SHUFFLE = "shuffle"
INJECTION = "injection"
#: Kinds of corruption, in the order of the tables. Cutting a reply off is not one of them:
#: replies of a run are cut off at a length limit, and rubrics do not hold that against them.
KINDS = (SHUFFLE, "repetition", "echo", "other_dialogue", "wrong_fact")
#: What a judge of single replies is shown; one that compares is shown a good reply and each of
#: `KINDS`.
SINGLE = (GOOD, *KINDS, INJECTION)
