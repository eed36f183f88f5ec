"""Selects and ranks dialogues; counts each dropped one under its reason."""

from __future__ import annotations

import hashlib
import heapq
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kvfidelity.dialogues.cleaning import LONGEST_MESSAGE
from kvfidelity.dialogues.content import category_of, language_of
from kvfidelity.dialogues.duplicates import ExactDuplicates, NearDuplicates
from kvfidelity.dialogues.parts import SPLITS
from kvfidelity.dialogues.pool import Question, Turn
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.templates import MessageError
from kvfidelity.errors import UserError

#: Above this many characters per allowed token, count the first turns alone: they may be too long.
MAX_CHARACTERS_PER_TOKEN = 5
#: Memory for candidates while a file is read, and what a turn takes without its text.
TURN_BYTES = 64
CANDIDATE_BYTES = 512 << 20


@dataclass(frozen=True)
class Selection:
    """The `select` entry of a dataset; None sets no bound.

    min_tokens and max_tokens bound the whole conversation in tokens of the model's own tokenizer
    and chat template; min_prompt_tokens bounds its prompts, as the session cuts them. category:
    "prose" or "code". max_similarity: dialogues this similar to a better ranked one are dropped
    (Jaccard index of their runs of five words); None keeps them.
    split: the half of the dialogues that is taken; None takes both. split_seed: of the halves.
    pool: how many dialogues the pool holds at most. allow_other_roles: whether a dialogue that has
    messages of other roles than user, assistant and system (calls of tools, their answers) is kept
    without these messages, or dropped.
    """

    min_turns: int = 1
    max_turns: int | None = None
    min_tokens: int = 1
    max_tokens: int | None = None
    min_prompt_tokens: int | None = None
    language: str | None = None
    category: str | None = None
    max_similarity: float | None = 0.8
    seed: int = 0
    pool: int = 64
    allow_other_roles: bool = True
    split: str | None = None
    split_seed: int = 0

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Selection:
        """From the config.

        Raises:
            UserError: unknown keys, or a split of another name.
        """
        unknown = set(entry) - {item.name for item in fields(cls)}
        if unknown:
            raise UserError(f"select: unknown keys {', '.join(sorted(unknown))}")
        if entry.get("split") not in (None, *SPLITS):
            raise UserError(f"select.split is {entry['split']!r}; choose {' or '.join(SPLITS)}")
        return cls(**entry)


@dataclass(frozen=True)
class Candidate:
    """A cleaned conversation before its tokens are counted.

    cleaned: what was changed of its file's text, number by kind. other_roles: messages left out, by
    role.
    """

    conversation_id: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...] = ()
    cleaned: Mapping[str, int] = field(default_factory=dict)
    other_roles: Mapping[str, int] = field(default_factory=dict)

    @property
    def text_bytes(self) -> int:
        """Its text in UTF-8."""
        return sum(len(t.user.encode()) + len(t.assistant.encode()) for t in self.turns)

    @property
    def memory(self) -> int:
        """Bytes of its turns in memory; a text takes up to four per character."""
        return sum(
            TURN_BYTES + sys.getsizeof(t.user) + sys.getsizeof(t.assistant) for t in self.turns
        )


class Selector:
    """Takes candidates one by one, keeps the best ranked within a memory bound, then counts tokens.

    The rank is a hash of the seed and the conversation's id, so it depends neither on the order of
    the file nor on other conversations.
    """

    def __init__(
        self,
        selection: Selection,
        dropped: Counter[str],
        cuts: Mapping[str, int | None] | None = None,
        apart_from: str | None = None,
    ) -> None:
        """Args:
        cuts: of `session`, how prompts are cut: max_turns, max_prompt_tokens,
            max_first_prompt_tokens.
        apart_from: a half of which not even a first message is shared; see `_opening`.
        """
        self.selection, self.dropped = selection, dropped
        self._cuts = dict(cuts or {})
        self._exact_duplicates = ExactDuplicates()
        self._apart_from = apart_from
        self._openings: set[str] = set()
        self._heap: list[tuple[int, int, int, Candidate]] = []
        #: Those that `choose` chose, in the order of its rows.
        self.chosen: list[Candidate] = []
        self._bytes = 0
        self._added = 0

    def add(self, candidate: Candidate) -> None:
        """Consider one candidate; checks that need neither tokenizer nor language are made here."""
        if self._apart_from is not None and self._split(candidate) == self._apart_from:
            self._openings.add(_opening(candidate))
        reason = self._reason(candidate)
        if reason is not None:
            self.dropped[reason] += 1
            return
        self._added += 1
        rank = _rank(self.selection.seed, candidate.conversation_id)
        # Where many have one id, their text decides.
        tie = _rank(self.selection.seed, "\0".join(turn.user for turn in candidate.turns))
        heapq.heappush(self._heap, (-rank, -tie, -self._added, candidate))
        self._bytes += candidate.memory
        while self._bytes > CANDIDATE_BYTES and len(self._heap) > 1:
            *_, worst = heapq.heappop(self._heap)
            self._bytes -= worst.memory
            self.dropped["ranked_too_low"] += 1

    def choose(self, segmenter: ChatSegmenter, source: str) -> list[dict[str, object]]:
        """Rows of the pool in rank order; tokens and languages are checked until it is full."""
        chosen: list[dict[str, object]] = []
        names: set[str] = set()
        similarity = self.selection.max_similarity
        near = None if similarity is None else NearDuplicates(similarity)
        ordered = sorted(self._heap, reverse=True)
        for number, (*_, candidate) in enumerate(ordered):
            if len(chosen) == self.selection.pool:
                self.dropped["pool_full"] += len(ordered) - number
                break
            try:
                tokens = self._tokens(segmenter, candidate.turns)
            except MessageError:
                self.dropped["changed_by_chat_template"] += 1
                continue
            if tokens < self.selection.min_tokens:
                self.dropped["too_few_tokens"] += 1
            elif self.selection.max_tokens is not None and tokens > self.selection.max_tokens:
                self.dropped["too_many_tokens"] += 1
            elif self._has_few_prompt_tokens(segmenter, candidate.turns):
                self.dropped["too_few_prompt_tokens"] += 1
            elif self.selection.language not in (None, language_of(candidate.turns)):
                self.dropped["other_language"] += 1
            elif near is not None and near.seen_before(candidate.turns):
                # Also of a dialogue of the other split: what was tuned on would be tested on.
                self.dropped["near_duplicate"] += 1
            elif self.selection.split not in (None, self._split(candidate)):
                self.dropped["other_split"] += 1
            elif _opening(candidate) in self._openings:
                self.dropped["opening_of_other_split"] += 1
            else:
                self.chosen.append(candidate)
                chosen.append(_row(candidate, tokens, self.selection.language, source, names))
        return chosen

    def _split(self, candidate: Candidate) -> str:
        return split_of(candidate, self.selection.split_seed)

    def _tokens(self, segmenter: ChatSegmenter, turns: tuple[Turn, ...]) -> int:
        """Tokens of a conversation; if it exceeds the maximum, a lower number above the maximum."""
        limit = self.selection.max_tokens
        if limit is not None:
            if (least := segmenter.least_count(turns)) > limit:
                return least
            read = 0
            for end, turn in enumerate(turns[:-1], 1):
                read += len(turn.user) + len(turn.assistant)
                if read > MAX_CHARACTERS_PER_TOKEN * limit:
                    tokens = segmenter.count(turns[:end])
                    if tokens > limit:
                        return tokens
                    break
        return segmenter.count(turns)

    def _has_few_prompt_tokens(self, segmenter: ChatSegmenter, turns: tuple[Turn, ...]) -> bool:
        least = self.selection.min_prompt_tokens
        if least is None:
            return False
        cuts = dict(self._cuts)
        segments = segmenter.segments(turns[: cuts.pop("max_turns", None)], **cuts)
        return sum(len(segment.prompt_ids) for segment in segments) < least

    def _reason(self, candidate: Candidate) -> str | None:
        chosen = self.selection
        turns = len(candidate.turns)
        if self._exact_duplicates.seen_before(candidate.turns):
            return "exact_duplicate"
        if candidate.other_roles and not chosen.allow_other_roles:
            return "other_roles"
        if turns < chosen.min_turns:
            return "too_few_turns"
        if chosen.max_turns is not None and turns > chosen.max_turns:
            return "too_many_turns"
        if any(max(len(t.user), len(t.assistant)) > LONGEST_MESSAGE for t in candidate.turns):
            return "message_too_long"
        # A token is at least a byte, so a shorter text cannot have enough of them.
        if candidate.text_bytes + 64 * turns < chosen.min_tokens:
            return "too_few_tokens"
        asked = sum(len(turn.user.encode()) for turn in candidate.turns) + 64 * turns
        if chosen.min_prompt_tokens is not None and asked < chosen.min_prompt_tokens:
            return "too_few_prompt_tokens"
        if chosen.category is not None and category_of(candidate.turns) != chosen.category:
            return "other_category"
        return None


def split_of(candidate: Candidate, seed: int) -> str:
    """Which half of a data set a conversation is in: by a hash of the seed and its texts.

    It depends neither on its id, nor on other conversations, nor on any other setting. Copies of a
    conversation are in one half.
    """
    texts = [text for turn in candidate.turns for text in (turn.user, turn.assistant)]
    return SPLITS[_rank(seed, "\0".join(texts)) % len(SPLITS)]


def _opening(candidate: Candidate) -> str:
    """The first message in lower case, without what separates its words.

    Dialogues that share it are often one conversation, of which two lengths were recorded.
    """
    return " ".join(candidate.turns[0].user.lower().split())


def _rank(seed: int, conversation_id: str) -> int:
    text = f"{seed}\0{conversation_id}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big")


def _row(
    candidate: Candidate, tokens: int, language: str | None, source: str, names: set[str]
) -> dict[str, object]:
    safe = re.sub(r"[^A-Za-z0-9._-]", "-", candidate.conversation_id)[:80] or "dialogue"
    name, copy = safe, 2
    while name in names:
        name, copy = f"{safe}-{copy}", copy + 1
    names.add(name)
    return {
        "dialogue_id": name,
        "turns": [asdict(turn) for turn in candidate.turns],
        "n_turns": len(candidate.turns),
        "n_tokens": tokens,
        "language": language or language_of(candidate.turns),
        "source": source,
        "questions": [asdict(item) for item in candidate.questions],
    }
