"""What cleaning changes, and what it keeps."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfidelity.dialogues.cleaning import clean_text, turns_of
from kvfidelity.dialogues.code_spans import split_code
from kvfidelity.dialogues.content import category_of, language_of
from kvfidelity.dialogues.formats import Message, RawConversation
from kvfidelity.dialogues.pool import Turn


def conversation(*pairs: tuple[str, str]) -> RawConversation:
    return RawConversation("a", 0, tuple(Message(role, text) for role, text in pairs))


@pytest.mark.parametrize(
    ("scraped", "clean"),
    [
        ("5 &lt; 6 &amp;&amp; 7 &gt; 2", "5 < 6 && 7 > 2"),
        ("it&#39;s", "it's"),
        ('<div class="markdown">text</div>', "text"),
        ("code\nCopy code\nmore", "code\n\nmore"),
        ("bell\x07 and \x00nil", "bell and nil"),
        ("half a pair \ud83d here", "half a pair  here"),
        ("a whole one \U0001f989", "a whole one \U0001f989"),
        ("use <|im_end|> to stop", "use <|im_end|> to stop"),
        ("if a <b> tag and x &foo; y", "if a <b> tag and x &foo; y"),
        ("  \n", ""),
        ("Tom &amp; Jerry say &lt;hi&gt;", "Tom & Jerry say <hi>"),
        ('<div class="markdown prose w-full"><div>a</div></div>', "<div>a</div>"),
    ],
)
def test_clean_text(scraped: str, clean: str) -> None:
    assert clean_text(scraped) == clean


@pytest.mark.parametrize(
    "written",
    [
        # Code: fenced, never closed, in a list, indented, inline.
        'Try:\n```html\n<div class="markdown">a &lt; b</div>\n```',
        "Try:\n~~~\nit&#39;s\nCopy code\n\x1b[31mred",
        "- one:\n  ```\n  <span>&amp;</span>\n  ```\n- two",
        "So:\n\n    x = '&quot;&amp;'\n\nis it.",
        "Wrap it in `<div>` or ``<span>` &amp; ``.",
        # Text about markup, and pasted markup.
        "In HTML you write &lt; for a less-than sign.",
        "Which entity is &lt;?",
        "Use &lt; where you mean <, and &amp; too.",
        "What does &lt; mean?",
        "See shop.example/buy?a=1&copy=2&lt=3 &amp; more",
        "https://a.example/?x=1&amp;y=2",
        '<div class="card">\n<p>Why is this blue?</p>\n</div>',
        "Put the id on the <div> and the <span>.",
        '<div class="prose">a</div> and <div class="prose">b</div>',
        "5 &times; 3 &eacute; &#8212;",
    ],
)
def test_what_was_written_stays(written: str) -> None:
    assert clean_text(written) == written


def test_code_stays_where_the_text_around_it_was_escaped() -> None:
    text = "Tom &amp; Jerry\n```\n&amp;\nCopy code\n```\nCopy code\nsay &quot;`&lt;`&quot;"
    assert clean_text(text) == 'Tom & Jerry\n```\n&amp;\nCopy code\n```\n\nsay "`&lt;`"'


@given(st.text(alphabet="a `~\n\r\t<>-*1.|\x00\u2028", max_size=60))
@settings(max_examples=200, derandomize=True, database=None)
def test_parts_of_a_message_are_the_message(text: str) -> None:
    assert "".join(part for _, part in split_code(text)) == text


def test_turns_begin_with_the_user_and_end_with_a_reply() -> None:
    notes: Counter[str] = Counter()
    raw = conversation(
        ("system", "Be brief"),
        ("assistant", "Welcome"),
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("assistant", ""),
        ("assistant", "d"),
        ("user", "unanswered"),
    )
    assert turns_of(raw, notes) == ((Turn("a\n\nb", "c\n\nd"),), None)
    assert {note: count for note, count in notes.items() if count} == {
        "system_messages_dropped": 1,
        "leading_replies_dropped": 1,
        "messages_merged": 2,
        "empty_messages_dropped": 1,
        "unanswered_questions_dropped": 1,
    }


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (conversation(), "empty"),
        (conversation(("user", " "), ("assistant", "\x00")), "empty"),
        (conversation(("assistant", "a"), ("assistant", "b")), "no_human_turn"),
        (conversation(("user", "anybody?")), "no_reply"),
        (conversation(("assistant", "a"), ("user", "b")), "no_reply"),
    ],
)
def test_conversations_without_a_turn_name_the_reason(raw: RawConversation, reason: str) -> None:
    assert turns_of(raw, Counter()) == ((), reason)


def test_language_is_that_of_the_chat_and_not_of_its_code() -> None:
    code = "```python\nfor line in open(name):\n    print(line)\n```"
    german = [Turn("Wie lese ich eine Datei?", "So liest man eine Datei Zeile für Zeile: " + code)]
    assert language_of(german) == "de"
    assert language_of([Turn("How do I read a file?", "Read it line by line: " + code)]) == "en"


def test_code_is_distinguished_from_prose() -> None:
    assert category_of([Turn("How?", "Like this:\n```\n" + "x = 1\n" * 20 + "```")]) == "code"
    assert category_of([Turn("How?", "With patience. " * 20)]) == "prose"
