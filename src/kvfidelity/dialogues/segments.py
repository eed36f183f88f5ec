"""Turns to token ids, exactly as in the model's chat template.

The template is rendered over the whole conversation and cut at its special tokens; the text between
them is tokenised as plain text. Text of the dialogue that looks like a special token is
marked before rendering and unmarked after cutting, so it can never become one.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kvfidelity.dialogues.pool import Turn
from kvfidelity.dialogues.prompt_cut import cut_to_tokens
from kvfidelity.errors import UserError

# Templates that print today's date would make a run depend on the day.
DATE = "26 Jul 2024"
PRIVATE_USE = range(0xE000, 0xF8FF)


@dataclass(frozen=True)
class Segment:
    """One turn's tokens.

    prompt_ids: from just after the previous end of turn up to and including the assistant's header.
    reply_ids: the reference reply and the end-of-turn token.
    """

    prompt_ids: tuple[int, ...]
    reply_ids: tuple[int, ...]


class ChatSegmenter:
    """Cuts conversations into segments with one tokenizer and its chat template.

    Args:
        tokenizer: a Hugging Face fast tokenizer with a chat template.

    Raises:
        UserError: no chat template, or one by which turn-by-turn feeding cannot give the ids of the
            whole conversation.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                f"tokenizer {tokenizer.name_or_path} has no chat template: use an instruct model"
            )
        self._tokenizer = tokenizer
        self._special = {
            str(token): (index, token.lstrip, token.rstrip)
            for index, token in tokenizer.added_tokens_decoder.items()
        }
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        sample = [Turn("Hello there", "Good day"), Turn("And you?", "  Fine.\n")]
        segments = self.segments(sample)
        self.end_of_turn_ids = segments[0].reply_ids[-1:]
        self.stop_ids = frozenset({*self.end_of_turn_ids, *_eos_ids(tokenizer)})
        self._check(sample, segments)

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
        """
        if max_prompt_tokens is not None:
            turns = [
                Turn(self._cut(turn.user, max_prompt_tokens), turn.assistant) for turn in turns
            ]
        escape = _unused_character(turns)
        messages = self._messages(turns, escape)
        whole = self._render(messages, answer=False)
        cuts = [0]
        for index in range(len(turns)):
            cuts += self._bounds_of_reply(whole, messages, index)
        parts = self._cut_tokens(whole, cuts, escape)
        if max_first_prompt_tokens is not None and len(parts[0]) > max_first_prompt_tokens:
            bos = parts[0][:1] if parts[0][0] == self._tokenizer.bos_token_id else ()
            parts[0] = (*bos, *parts[0][len(bos) - max_first_prompt_tokens :])
        return [Segment(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]

    def count(self, turns: Sequence[Turn]) -> int:
        """Tokens of all segments of a conversation; cheaper than `segments`."""
        escape = _unused_character(turns)
        messages = self._messages(turns, escape)
        whole = self._render(messages, answer=False)
        _, end = self._bounds_of_reply(whole, messages, len(turns) - 1)
        return sum(map(len, self._cut_tokens(whole, [0, end], escape)))

    def _messages(self, turns: Sequence[Turn], escape: str) -> list[dict[str, str]]:
        return [
            {"role": role, "content": self._escape(text, escape)}
            for turn in turns
            for role, text in (("user", turn.user), ("assistant", turn.assistant))
        ]

    def _bounds_of_reply(
        self, whole: str, messages: list[dict[str, str]], index: int
    ) -> tuple[int, int]:
        """Where the reply of a turn begins in the rendered text, and where its end of turn ends."""
        before_reply = self._render(messages[: 2 * index + 1], answer=True)
        closing = self._pattern.search(whole, len(before_reply))
        if closing is None or not whole.startswith(before_reply):
            raise UserError(
                f"the chat template of {self._tokenizer.name_or_path} rewrites earlier "
                "messages or does not close them: turn-by-turn feeding cannot reproduce it"
            )
        return len(before_reply), closing.end()

    def _cut_tokens(self, whole: str, cuts: list[int], escape: str) -> list[tuple[int, ...]]:
        """Token ids of `whole` between neighbouring cuts (characters of the marked text).

        The whole text is tokenised at once, so a token can lie across a cut, as in the template; it
        goes to the later part.
        """
        ids, ends = self._tokenise(self._pattern.split(whole), escape)
        plain_cuts = [cut - whole.count(escape, 0, cut) for cut in cuts]
        token_cuts = [bisect.bisect_right(ends, cut) for cut in plain_cuts]
        token_cuts[0] = 0
        return [tuple(ids[start:stop]) for start, stop in pairwise(token_cuts)]

    def _tokenise(self, pieces: list[str], escape: str) -> tuple[list[int], list[int]]:
        """Ids of alternating plain and special pieces, and where each ends in the unmarked text."""
        plain: list[tuple[int, str]] = []
        special: list[tuple[int, int]] = []
        offset = 0
        for number, escaped in enumerate(pieces):
            piece = escaped.replace(escape, "")
            if number % 2:
                special.append((offset + len(piece), self._special[escaped][0]))
            else:
                left, right = self._stripped(pieces, number, piece)
                plain.append((offset + left, piece[left:right]))
            offset += len(piece)
        encoded = self._tokenizer(
            [text for _, text in plain],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        ids: list[int] = []
        ends: list[int] = []
        for number, (start, _) in enumerate(plain):
            ids += encoded["input_ids"][number]
            ends += [start + end for _, end in encoded["offset_mapping"][number]]
            if number < len(special):
                ends.append(special[number][0])
                ids.append(special[number][1])
        return ids, ends

    def _stripped(self, pieces: list[str], number: int, piece: str) -> tuple[int, int]:
        """Bounds of a plain piece without the spaces that adjacent special tokens strip."""
        left, right = 0, len(piece)
        if number and self._special[pieces[number - 1]][2]:
            left = len(piece) - len(piece.lstrip())
        if number + 1 < len(pieces) and self._special[pieces[number + 1]][1]:
            right = max(left, len(piece.rstrip()))
        return left, right

    def _cut(self, text: str, limit: int) -> str:
        return cut_to_tokens(self._tokenizer, text, limit)

    def _escape(self, text: str, escape: str) -> str:
        return self._pattern.sub(lambda found: found[0][0] + escape + found[0][1:], text)

    def _render(self, messages: list[dict[str, str]], *, answer: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answer, date_string=DATE
        )
        return text

    def _check(self, sample: Sequence[Turn], segments: Iterable[Segment]) -> None:
        ours = [token for part in segments for token in (*part.prompt_ids, *part.reply_ids)]
        messages = [
            {"role": role, "content": text}
            for turn in sample
            for role, text in (("user", turn.user), ("assistant", turn.assistant))
        ]
        whole = self._tokenizer(self._render(messages, answer=False), add_special_tokens=False)
        if whole["input_ids"][: len(ours)] != ours:
            raise UserError(
                f"tokenizer {self._tokenizer.name_or_path} does not split its text at special "
                "tokens: turn-by-turn feeding would give other ids than its chat template"
            )


def _eos_ids(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _unused_character(turns: Sequence[Turn]) -> str:
    used = set().union(*(set(turn.user) | set(turn.assistant) for turn in turns))
    return next(chr(code) for code in PRIVATE_USE if chr(code) not in used)
