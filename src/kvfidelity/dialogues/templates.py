"""Where a chat template puts each message, and what it writes around them.

A template is a program, so it is run on opaque placeholders instead of messages: what it writes
between them depends on the number of turns alone. From that follows where prompts and replies are
cut, and whether they can be cut at all.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kvfidelity.dialogues.pool import Turn
from kvfidelity.errors import UserError

#: The day that every template is told, whatever the clock says.
DATE = "26 Jul 2024"
TODAY = datetime.strptime(DATE, "%d %b %Y")
#: What every template is told. A reply of a dialogue holds no reasoning, so thinking is off.
SETTINGS: dict[str, Any] = {"date_string": DATE, "enable_thinking": False, "thinking": False}
CLOCKS = frozenset({"date_string", "strftime_now"})
THINKING = frozenset({"enable_thinking", "thinking"})
#: What a template, which is a program of others, may raise besides Jinja's own errors.
PROGRAM_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    SyntaxError,
)
PRIVATE_USE = range(0xE000, 0xF8FF)
_PLACEHOLDER = re.compile("\ue000([0-9]+)\ue001")
#: A block that transformers adds to the language; it writes nothing.
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
#: An added token that a template uses as a mark: `<think>`, `[INST]`, `<|end|>`.
_MARKUP = re.compile(r"[^\w\s]\S+[^\w\s]")


class MessageError(UserError):
    """A template that treats the text of one message in a way of its own."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template writes it.

    text: all of it. spans: (start, stop) of each message in it. cuts: per turn, where the prompt
    and where the reply ends. marks: (start, stop, token) of the control tokens that the template
    itself writes. look_alikes: whether a message holds text that looks like one.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    cuts: tuple[tuple[int, int], ...]
    marks: tuple[tuple[int, int, str], ...]
    look_alikes: bool


@dataclass(frozen=True)
class TurnLayout:
    """How one turn is cut.

    header: characters of the text before the reply that belong to the prompt. opening: what
    stands before a reply that is generated now, but is dropped once another turn follows.
    close: characters of the text after the reply up to the end-of-turn token. end: that token,
    None if the template writes none after the last reply.
    """

    header: int
    opening: str
    close: int
    end: str | None


class ChatTemplate:
    """A tokenizer's chat template, with everything it may ask for fixed.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Raises:
        UserError: no template, or one by which a conversation cannot be fed turn by turn.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.name = tokenizer.name_or_path
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(f"tokenizer {self.name} has no chat template: use an instruct model")
        self._tokenizer = tokenizer
        try:
            source = tokenizer.get_chat_template()
        except ValueError as error:
            raise self._refusal(f"offers no default ({_one_line(error)})") from None
        constants, self.variables = self._read(source)
        if "strftime_now" in self.variables:
            source = _fixed_clock(constants) + source
        self._source = source
        added = tokenizer.added_tokens_decoder.values()
        #: Tokens that text must not become.
        self.control_tokens = frozenset(
            token.content
            for token in added
            if token.special or (token.content in source and _MARKUP.fullmatch(token.content))
        )
        self._control = _any_of(self.control_tokens)
        # Marks that the template looks for in a message are hidden from it, tokens or not.
        looked_for = (text.strip() for text in constants)
        marks = {text for text in looked_for if _MARKUP.fullmatch(text)}
        self._hidden = _any_of(self.control_tokens | marks)
        self._skeletons: dict[int, list[str]] = {}
        self._layouts: dict[int, list[TurnLayout]] = {}

    def layout(self, turns: int) -> list[TurnLayout]:
        """How a conversation of this many turns is cut.

        Raises:
            UserError: it cannot be cut; the message says what the template does.
        """
        if turns not in self._layouts:
            layout = [self._turn(turns, turn) for turn in range(turns)]
            if turns > 2 and {turn.opening for turn in layout[:-1]} != {self.layout(2)[0].opening}:
                raise self._refusal("writes something else before each reply that is the last")
            self._layouts[turns] = layout
        return self._layouts[turns]

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """Write a conversation and find each message in it.

        Whitespace that the template takes off a message's ends is not part of it.

        Raises:
            MessageError: the template changes the text of a message.
        """
        texts = [text for turn in turns for text in (turn.user, turn.assistant)]
        used = set().union(*map(set, texts))
        escape = next(chr(code) for code in PRIVATE_USE if chr(code) not in used)
        hidden = [
            self._hidden.sub(lambda found: found[0][0] + escape + found[0][1:], text)
            for text in texts
        ]
        whole = self._write(hidden, answer=False)
        literals, layout = self._skeleton(2 * len(turns)), self.layout(len(turns))
        pieces, spans, starts, found = [literals[0]], [], [0], len(literals[0])
        length = found
        if not whole.startswith(literals[0]):
            raise self._rewritten(texts[0])
        for text, literal in zip(hidden, literals[1:], strict=True):
            kept = _kept(text, whole, found, literal)
            if kept is None:
                raise self._rewritten(text.replace(escape, ""))
            found += len(kept) + len(literal)
            plain = kept.replace(escape, "")
            pieces += [plain, literal]
            spans.append((length, length + len(plain)))
            starts.append(length + len(plain))
            length += len(plain) + len(literal)
        if found != len(whole):
            raise self._rewritten(texts[-1])
        cuts = [
            (starts[2 * index + 1] + turn.header, starts[2 * index + 2] + turn.close)
            for index, turn in enumerate(layout)
        ]
        marks = [
            (start + match.start(), start + match.end(), match[0])
            for start, literal in zip(starts, literals, strict=True)
            for match in self._control.finditer(literal)
        ]
        text = "".join(pieces)
        # Also where a token would begin in a message and end in the template's own text.
        look_alikes = self._control.findall(text) != [token for _, _, token in marks]
        return Rendered(text, tuple(spans), tuple(cuts), tuple(marks), look_alikes)

    def _turn(self, turns: int, turn: int) -> TurnLayout:
        """Compare what is written around a reply now, while it is the last, and before it."""
        before = 2 * turn + 1
        whole = self._skeleton(2 * turns)
        as_last, asked = self._skeleton(before + 1), self._skeleton(before)
        if not whole[:before] == as_last[:before] == asked[:before]:
            raise self._refusal("rewrites earlier messages once others follow")
        now, last, prompt = whole[before], as_last[before], asked[before]
        if not last.startswith(prompt):
            shown = prompt[len(_common_start(prompt, last)) :]
            raise self._refusal(
                f"ends its generation prompt with {shown!r}, which it does not write before a "
                "completed reply, and has no `enable_thinking` to switch that off"
            )
        # A space or line end before the reply is the reply's own: its tokens span both.
        start = prompt if not last[len(prompt) :].strip() else last
        if now == last:
            header, opening = len(start), ""
        elif start.startswith(now):
            header, opening = len(now), start[len(now) :]
        else:
            raise self._refusal(f"writes {now!r} before an earlier reply, {last!r} before the last")
        closing = self._control.search(whole[before + 1])
        if closing is None and turn < turns - 1:
            raise self._refusal("does not close replies with a special token")
        return TurnLayout(
            header,
            opening,
            closing.end() if closing else len(whole[before + 1]),
            closing[0] if closing else None,
        )

    def _skeleton(self, messages: int) -> list[str]:
        """What the template writes before, between and after this many messages.

        An odd number ends with a user's message, so what follows is the generation prompt.
        """
        if messages not in self._skeletons:
            texts = [f"\ue000{number}\ue001" for number in range(messages)]
            parts = _PLACEHOLDER.split(self._write(texts, answer=messages % 2 == 1))
            if parts[1::2] != [str(number) for number in range(messages)]:
                raise self._refusal("leaves out, repeats or alters messages")
            self._skeletons[messages] = parts[::2]
        return self._skeletons[messages]

    def _write(self, texts: Sequence[str], *, answer: bool) -> str:
        from jinja2 import TemplateError

        messages = [
            {"role": "assistant" if number % 2 else "user", "content": text}
            for number, text in enumerate(texts)
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=answer,
                **SETTINGS,
            )
        except (TemplateError, *PROGRAM_ERRORS) as error:
            raise self._refusal(f"fails ({_one_line(error)})") from None
        return text

    def _read(self, source: str) -> tuple[set[str], frozenset[str]]:
        """The texts in a template's code, and the variables that it reads."""
        import jinja2
        from jinja2 import meta, nodes

        environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
        try:
            parsed = environment.parse(_GENERATION.sub("", source))
        except (jinja2.TemplateError, *PROGRAM_ERRORS) as error:  # a number of 5,000 digits
            raise self._refusal(f"cannot be read ({_one_line(error)})") from None
        constants = {
            node.value for node in parsed.find_all(nodes.Const) if isinstance(node.value, str)
        }
        return constants, frozenset(meta.find_undeclared_variables(parsed))

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"the chat template of {self.name} {reason}: a conversation cannot be fed turn by "
            "turn with it; use another model or template"
        )

    def _rewritten(self, text: str) -> MessageError:
        return MessageError(
            f"the chat template of {self.name} changes the text of a message "
            f"({text[:60]!r}): use another model, or leave this dialogue out"
        )


def _fixed_clock(constants: set[str]) -> str:
    """A macro for the start of a template, which hides the clock that transformers offers.

    A function cannot be passed to a template, so the macro holds the day in each format that the
    template writes it in.
    """
    formats = {}
    for text in sorted(constants):
        if "%" in text:
            with contextlib.suppress(ValueError):  # no format, but another text with a sign
                formats[text] = TODAY.strftime(text)
    body = f"{{{{ {json.dumps(formats)}[format] }}}}"
    # What stands between the macro and the template keeps a line end that the template starts with.
    return f"{{% macro strftime_now(format) %}}{body}{{% endmacro %}}{{{{ '' }}}}"


def _kept(text: str, whole: str, start: int, literal: str) -> str | None:
    """What the template kept of a message: all of it, or without whitespace at its ends.

    whole[start:] begins with it, and `literal` follows. None if the template did something else.
    """
    # In whitespace alone each end may be taken off up to the other.
    first = len(text) - len(text.lstrip())
    last = len(text.rstrip()) if text.strip() else 0
    for begin in range(first + 1):
        for end in range(len(text), max(begin, last) - 1, -1):
            kept = text[begin:end]
            if whole.startswith(kept, start) and whole.startswith(literal, start + len(kept)):
                return kept
    return None


def _any_of(tokens: frozenset[str] | set[str]) -> re.Pattern[str]:
    """Matches the longest of these texts; nothing if there are none."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _common_start(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
