"""A judge kind as a user writes it, and as docs/judging.md shows it."""

WORDS_JUDGE = '''\
from dataclasses import dataclass

from kvfidelity.judges.base import Judge
from kvfidelity.options import option


@dataclass(frozen=True)
class WordsJudge(Judge):
    """Gives longer replies a better score."""

    kind = "words"

    words_per_point: int = option(2, doc="words for one point more", low=1)

    def judge(self, rows):
        return [self._score(row) for row in rows]

    def _score(self, row):
        if row["reply"] is None:
            return self.verdict(row, None, "no own reply", status="no_reply")
        words = len(row["reply"].split())
        return self.verdict(row, min(10, 1 + words // self.words_per_point), f"{words} words")
'''
