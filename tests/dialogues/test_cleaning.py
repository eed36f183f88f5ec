"""What cleaning changes, and what it keeps."""

from __future__ import annotations

from collections import Counter

import pytest

from kvfidelity.dialogues.cleaning import clean_text, turns_of
from kvfidelity.dialogues.content import category_of, language_of
from kvfidelity.dialogues.formats import Message, RawConversation
from kvfidelity.dialogues.pool import Turn


def conversation(*pairs: tuple[str, str]) -> RawConversation:
    return RawConversation("a", 0, tuple(Message(role, text) for role, text in pairs))


@pytest.mark.parametrize(
    ("given", "clean"),
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
    ],
)
def test_clean_text(given: str, clean: str) -> None:
    assert clean_text(given) == clean


def test_turns_begin_with_the_user_and_end_with_a_reply() -> None:
    notes: Counter[str] = Counter()
    given = conversation(
        ("system", "Be brief"),
        ("assistant", "Welcome"),
        ("user", "a"),
        ("user", "b"),
        ("assistant", "c"),
        ("assistant", ""),
        ("assistant", "d"),
        ("user", "unanswered"),
    )
    assert turns_of(given, notes) == ((Turn("a\n\nb", "c\n\nd"),), None)
    assert {note: count for note, count in notes.items() if count} == {
        "system_messages_dropped": 1,
        "leading_replies_dropped": 1,
        "messages_merged": 2,
        "empty_messages_dropped": 1,
        "unanswered_questions_dropped": 1,
    }


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (conversation(), "empty"),
        (conversation(("user", " "), ("assistant", "\x00")), "empty"),
        (conversation(("assistant", "a"), ("assistant", "b")), "no_human_turn"),
        (conversation(("user", "anybody?")), "no_reply"),
        (conversation(("assistant", "a"), ("user", "b")), "no_reply"),
    ],
)
def test_conversations_without_a_turn_name_the_reason(given: RawConversation, reason: str) -> None:
    assert turns_of(given, Counter()) == ((), reason)


def test_language_is_that_of_the_chat_and_not_of_its_code() -> None:
    code = "```python\nfor line in open(name):\n    print(line)\n```"
    german = [Turn("Wie lese ich eine Datei?", "So liest man eine Datei Zeile für Zeile: " + code)]
    assert language_of(german) == "de"
    assert language_of([Turn("How do I read a file?", "Read it line by line: " + code)]) == "en"


def test_code_is_distinguished_from_prose() -> None:
    assert category_of([Turn("How?", "Like this:\n```\n" + "x = 1\n" * 20 + "```")]) == "code"
    assert category_of([Turn("How?", "With patience. " * 20)]) == "prose"
