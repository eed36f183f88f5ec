"""Where a message in Markdown holds code."""

from __future__ import annotations

import re
from functools import cache

from markdown_it import MarkdownIt

# Line ends as Markdown has them; `str.splitlines` knows more.
LINE = re.compile(r"\r\n?|\n")
# CommonMark 0.31, section 6.1: a code span ends at a run of as many backticks as it begins with.
INLINE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", flags=re.DOTALL)


def split_code(text: str) -> list[tuple[bool, str]]:
    """Parts of a message in order, each with whether it is code: fenced, indented or inline.

    The parts joined are the message. A fence that is not closed ends with the message.
    """
    starts = [0, *(found.end() for found in LINE.finditer(text)), len(text)]
    last = len(starts) - 1
    spans: list[tuple[int, int]] = []
    for token in _parser().parse(text):
        if token.map is None:
            continue
        begin, end = (starts[min(line, last)] for line in token.map)
        if token.type in ("fence", "code_block"):
            spans.append((begin, end))
        elif token.type == "inline":
            spans += [found.span() for found in INLINE.finditer(text, begin, end)]
    parts, at = [], 0
    for begin, end in sorted(spans):
        if begin < at:
            continue
        parts += [(False, text[at:begin]), (True, text[begin:end])]
        at = end
    return [part for part in [*parts, (False, text[at:])] if part[1]]


@cache
def _parser() -> MarkdownIt:
    # An HTML block would hide the code inside it. Inline rules are not needed to find blocks.
    return MarkdownIt("commonmark").disable(["html_block", "inline"], ignoreInvalid=True)
