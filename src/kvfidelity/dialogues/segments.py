"""Turns to token ids, exactly as in the model's chat template.

The template is rendered over the whole conversation, encoded as one text and cut where prompts and
replies end. Text of the dialogue that looks like a special token stays plain text.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from kvfidelity.dialogues.encoding import Encoder
from kvfidelity.dialogues.least_tokens import least_tokens, tokens_keep_words_apart
from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.prompt_cut import cut_to_tokens
from kvfidelity.dialogues.templates import (
    CLOCKS,
    DATE,
    THINKING,
    ChatTemplate,
    MessageError,
    Rendered,
)
from kvfidelity.errors import UserError

# Two turns with whitespace at their ends; the second reply is the last.
SAMPLE = (Turn("Hello there", "Good day"), Turn("And you?", "  Fine.\n"))
#: The reply of a turn that is not the dialogue's.
ACKNOWLEDGED = "Understood."
#: Conversations whose segments are remembered; one of 8,000 tokens takes 0.3 MB.
MOST_REMEMBERED = 512


@dataclass(frozen=True)
class Segment:
    """One turn's tokens.

    prompt_ids: from just after the previous end of turn up to and including the assistant's header.
    reply_ids: the reference reply and the end-of-turn token. closing: how many tokens at the end
    of reply_ids are that token; 0 if the template does not close the last reply. opening_ids: fed
    before a reply that the model writes itself; the template drops them once another turn
    follows, so they are not part of the conversation (the empty think block of Qwen3).
    """

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]
    closing: int = 1
    opening_ids: tuple[int, ...] = ()

    @property
    def text_ids(self) -> tuple[int, ...]:
        """The reply without its end-of-turn token."""
        return self.reply_ids[: len(self.reply_ids) - self.closing]


class ChatSegmenter:
    """Cuts conversations into segments with one tokenizer and its chat template.

    end_of_turn_ids: what closes a reply once another turn follows. stop_ids: tokens that end a
    generated reply. notes: what was fixed for the template, and what stops a reply, for records.

    Args:
        tokenizer: a Hugging Face fast tokenizer with a chat template.
        end_ids: further tokens that end a reply (`eos_token_id` of the model's own files).

    Raises:
        UserError: no chat template, or one by which turn-by-turn feeding cannot give the ids of the
            whole conversation.
    """

    def __init__(self, tokenizer: Any, end_ids: Set[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._encoder = Encoder(tokenizer, self._template.control_tokens)
        self._words_apart: bool | None = None
        # All cells of a dialogue ask for the same, and for the same questions.
        self._segments = lru_cache(maxsize=MOST_REMEMBERED)(self._segment)
        self._opening: tuple[int, ...] = ()
        self._opening = self._opening_ids()
        self._segments.cache_clear()  # what is remembered has no opening
        self.segments(SAMPLE * 2)
        ends = [turn.end for turn in self._template.layout(2)]
        ids = tokenizer.convert_tokens_to_ids([end for end in ends if end])
        self.end_of_turn_ids: tuple[int, ...] = tuple(ids[:1])
        self.stop_ids = frozenset({*ids, *end_ids, *_eos_ids(tokenizer)})
        self.notes = self._notes()

    def segments(
        self,
        turns: Sequence[Turn],
        *,
        max_prompt_tokens: int | None = None,
        max_first_prompt_tokens: int | None = None,
    ) -> list[Segment]:
        """Cut a conversation.

        Args:
            turns: at least one.
            max_prompt_tokens: user messages are cut to this many tokens; None keeps them whole.
            max_first_prompt_tokens: keep only this many last tokens of the first prompt; the
                beginning-of-text token, if any, stays first (arXiv 2511.04686).

        Raises:
            UserError: the template does not extend a conversation turn by turn.
            MessageError: it changes the text of a message.
        """
        return list(self._segments(tuple(turns), max_prompt_tokens, max_first_prompt_tokens))

    def whole_turn(self, message: str) -> tuple[int, ...]:
        """The tokens of a turn inside a conversation: a message with a reply of one word.

        Raises:
            MessageError: the template changes the text of the message.
        """
        turns = [SAMPLE[0], Turn(message, ACKNOWLEDGED), SAMPLE[1]]
        segment = self.segments(turns)[1]
        return (*segment.prompt_ids, *segment.reply_ids)

    def _segment(
        self,
        turns: Sequence[Turn],
        max_prompt_tokens: int | None,
        max_first_prompt_tokens: int | None,
    ) -> tuple[Segment, ...]:
        if max_prompt_tokens is not None:
            turns = [
                Turn(self._cut(turn.user, max_prompt_tokens), turn.assistant) for turn in turns
            ]
        rendered = self._template.render(turns)
        parts = self._cut_tokens(rendered)
        if max_first_prompt_tokens is not None and len(parts[0]) > max_first_prompt_tokens:
            bos = parts[0][:1] if parts[0][0] == self._tokenizer.bos_token_id else ()
            parts[0] = (*bos, *parts[0][len(bos) - max_first_prompt_tokens :])
        return tuple(
            Segment(
                prompt,
                self._reply(reply),
                closing=1 if turn.end else 0,
                opening_ids=self._opening if turn.opening else (),
            )
            for prompt, reply, turn in zip(
                parts[::2], parts[1::2], self._template.layout(len(turns)), strict=True
            )
        )

    def count(self, turns: Sequence[Turn]) -> int:
        """Tokens of all segments of a conversation."""
        return sum(map(len, self._cut_tokens(self._template.render(turns))))

    def least_count(self, turns: Sequence[Turn]) -> int:
        """A bound of `count` from below that costs no encoding; 0 if this tokenizer gives none."""
        if self._words_apart is None:
            self._words_apart = tokens_keep_words_apart(self._tokenizer.backend_tokenizer)
        if not self._words_apart:
            return 0
        return least_tokens(text for turn in turns for text in (turn.user, turn.assistant))

    def _cut_tokens(self, rendered: Rendered) -> list[tuple[int, ...]]:
        """Token ids of each prompt and each reply.

        The whole text is tokenised at once, so a token can lie across a cut, as in the template; it
        goes to the later part.
        """
        ids, ends = self._encoder(rendered)
        cuts = [cut for pair in rendered.cuts for cut in pair]
        token_cuts = [0, *(bisect.bisect_right(ends, cut) for cut in cuts)]
        return [tuple(ids[start:stop]) for start, stop in pairwise(token_cuts)]

    def _cut(self, text: str, limit: int) -> str:
        return cut_to_tokens(self._tokenizer, text, limit)

    def _reply(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if not ids:
            raise MessageError(
                f"the chat template of {self._template.name} leaves nothing of a reply that is "
                "whitespace alone: leave this dialogue out"
            )
        return ids

    def _opening_ids(self) -> tuple[int, ...]:
        """By what a prompt is longer while its turn is the last."""
        now, later = self.segments(SAMPLE[:1])[0], self.segments(SAMPLE)[0]
        size = len(later.prompt_ids)
        if now.prompt_ids[:size] != later.prompt_ids:
            raise UserError(
                f"tokenizer {self._template.name} merges what its chat template writes before the "
                "last reply with the text before it: turn-by-turn feeding cannot reproduce it"
            )
        return now.prompt_ids[size:]

    def _notes(self) -> dict[str, Any]:
        notes: dict[str, Any] = {}
        if self._template.variables & CLOCKS:
            notes["date"] = DATE
        if self._template.variables & THINKING:
            notes["thinking"] = "off"
        if self._opening:
            notes["before_last_reply"] = self._template.layout(2)[0].opening
        stops = sorted(self.stop_ids)
        names = self._tokenizer.convert_ids_to_tokens(stops)
        return notes | {"stop_tokens": [str(name) for name in names], "stop_ids": stops}


def _eos_ids(tokenizer: Any) -> list[int]:
    ids = tokenizer.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
