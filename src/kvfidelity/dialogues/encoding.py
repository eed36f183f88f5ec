"""Token ids of a conversation as a chat template writes it, encoded as one text.

Pieces encoded one by one would differ from the whole: SentencePiece tokenizers put a space before
the text's first word only. Where a message holds text that looks like a special token, the whole
is encoded by a copy of the tokenizer whose special tokens have other names, so only those that the
template wrote are found.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterator, Set
from typing import Any

from kvfidelity.dialogues.templates import PRIVATE_USE, Rendered
from kvfidelity.errors import UserError


class Encoder:
    """Encodes rendered conversations.

    Args:
        tokenizer: a Hugging Face tokenizer of the `tokenizers` library.
        control_tokens: added tokens that text must not become.

    Raises:
        UserError: a tokenizer of another kind, which does not tell where its tokens lie.
    """

    def __init__(self, tokenizer: Any, control_tokens: Set[str]) -> None:
        self._tokenizer = tokenizer
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UserError(
                f"tokenizer {tokenizer.name_or_path} is not one of the tokenizers library (no "
                "tokenizer.json): convert it to a fast tokenizer"
            )
        self._control = {
            token.content: index
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.content in control_tokens
        }
        self._names = {index: token for token, index in self._control.items()}
        self._renamed: dict[str, Any] = {}

    def __call__(self, rendered: Rendered) -> tuple[list[int], list[int]]:
        """Ids of the whole text, and the character at which each of them ends.

        Raises:
            UserError: the tokenizer does not keep special tokens and text apart.
        """
        if rendered.look_alikes:
            ids, spans = self._encode_renamed(rendered)
        else:
            encoded = self._tokenizer(
                rendered.text,
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        unknown = self._tokenizer.unk_token_id
        found = [token for token in ids if token in self._names and token != unknown]
        written = [self._control[token] for _, _, token in rendered.marks]
        if found != [token for token in written if token != unknown]:
            raise UserError(
                f"tokenizer {self._tokenizer.name_or_path} does not split its text at special "
                "tokens: turn-by-turn feeding would give other ids than its chat template"
            )
        return ids, list(self._ends(rendered.text, ids, spans))

    def _ends(self, text: str, ids: list[int], spans: list[tuple[int, int]]) -> Iterator[int]:
        """Where each token ends; whitespace that a special token swallows is not part of it."""
        for token, (start, end) in zip(ids, spans, strict=True):
            name = self._names.get(token)
            at = text.find(name, start, end) if name else -1
            yield at + len(name) if name and at >= 0 else end

    def _encode_renamed(self, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
        """As `__call__`, with the template's marks under the names that the copy has for them."""
        mark = next(chr(code) for code in PRIVATE_USE if chr(code) not in rendered.text)
        if mark not in self._renamed:
            self._renamed = {mark: self._copy(mark)}
        pieces, plain, renamed = [], [0], [0]
        for start, end, token in rendered.marks:
            name = _name(mark, self._control[token])
            pieces += [rendered.text[plain[-1] : start], name]
            plain += [start, end]
            renamed += [renamed[-1] + len(pieces[-2]), renamed[-1] + len(pieces[-2]) + len(name)]
        pieces.append(rendered.text[plain[-1] :])
        encoded = self._renamed[mark].encode("".join(pieces), add_special_tokens=False)

        def back(position: int) -> int:
            piece = bisect.bisect_right(renamed, position) - 1
            return plain[piece] + position - renamed[piece]

        return encoded.ids, [(back(start), back(end)) for start, end in encoded.offsets]

    def _copy(self, mark: str) -> Any:
        """The tokenizer, its control tokens named by `mark` and their id."""
        from tokenizers import Tokenizer

        state = json.loads(self._tokenizer.backend_tokenizer.to_str())
        state |= {"truncation": None, "padding": None, "post_processor": None}
        for entry in state["added_tokens"]:
            if entry["content"] in self._control:
                entry["content"] = _name(mark, entry["id"])
        model = state["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {
                _name(mark, index) if self._control.get(token) == index else token: index
                for token, index in model["vocab"].items()
            }
        else:
            model["vocab"] = [
                [_name(mark, index) if self._control.get(token) == index else token, score]
                for index, (token, score) in enumerate(model["vocab"])
            ]
        if (unknown := self._control.get(model.get("unk_token") or "")) is not None:
            model["unk_token"] = _name(mark, unknown)
        copy = Tokenizer.from_str(json.dumps(state))
        for index in self._names:
            if copy.token_to_id(_name(mark, index)) != index:
                raise UserError(
                    f"special tokens of tokenizer {self._tokenizer.name_or_path} have no ids of "
                    "their own: text that looks like one could not be told apart"
                )
        return copy


def _name(mark: str, index: int) -> str:
    return f"{mark}{index}{mark}"
