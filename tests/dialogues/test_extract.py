"""From a fetched file to a pool: what is kept, in which order, and an account of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kvfidelity.dialogues.extract import extract
from kvfidelity.dialogues.pool import KIND, Question, Turn, read_dialogue
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.dialogues.selection import Selection
from kvfidelity.errors import UserError
from kvfidelity.records.artifacts import write_parquet
from tests.dialogues.conftest import bundled_records, make_tokenizer
from tests.dialogues.formats.test_files import say
from tests.dialogues.formats.test_forms import LOCOMO

WORDS = ["river", "stone", "lamp", "garden", "paper", "window"]
WORDS += ["silver", "morning", "ladder", "bread", "needle", "island"]


def folder(path: Path, records: list[Any]) -> Path:
    (path / "data.json").write_text(json.dumps(records), encoding="utf-8")
    (path / "provenance.json").write_text('{"source": "path"}', encoding="utf-8")
    return path


def chatter(number: int, turns: int = 2) -> list[dict[str, str]]:
    """A conversation that shares no run of five words with another's."""
    words = [WORDS[(number * 7 + k * (1 + number % 5)) % 12] + str(number) for k in range(40)]
    return say(*[" ".join([*words[n:], str(n)]) for n in range(2 * turns)])


def entry(**select: Any) -> dict[str, Any]:
    return {"format": "sharegpt", "select": select}


def accounted(manifest: dict[str, Any]) -> bool:
    dropped = sum(manifest["dropped"].values())
    return bool(
        manifest["conversations_read"] == manifest["kept"] + dropped + manifest["joined_to_others"]
    )


@pytest.mark.parametrize("joined", [{}, {"join_tokens": 100}])
def test_a_dialogue_that_the_chat_template_treats_in_its_own_way_is_counted(
    tmp_path: Path, joined: dict[str, int]
) -> None:
    tokenizer = make_tokenizer("chatml")
    condition = "{% if 'secret' in message['content'] %}(hidden){% endif %}"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_end|>", condition + "<|im_end|>", 2
    )
    records = [{"id": f"d{n}", "conversations": chatter(n)} for n in range(3)]
    records[1]["conversations"][2]["value"] += " secret"
    segmenter = ChatSegmenter(tokenizer)
    _, manifest = extract(folder(tmp_path, records), entry() | joined, segmenter)
    assert manifest["kept"] == 2
    assert manifest["dropped"] == {"changed_by_chat_template": 1}
    assert accounted(manifest)
    assert manifest["chat"] == segmenter.notes
    assert manifest["chat"]["stop_tokens"] == ["<|im_end|>"]


def test_the_bundled_dialogues_make_a_pool(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    data = folder(tmp_path, bundled_records())
    pool, manifest = extract(data, entry(min_turns=8, language="en"), segmenter)
    assert manifest["kept"] == 3
    assert accounted(manifest)
    write_parquet(pool, tmp_path / "pool.parquet", kind=KIND)
    dialogue = read_dialogue(tmp_path / "pool.parquet", "002")
    assert len(dialogue.turns) == 10
    assert segmenter.count(dialogue.turns) == manifest["tokens"][2]
    with pytest.raises(UserError, match="has 3 dialogues, but no number 003: lower"):
        read_dialogue(tmp_path / "pool.parquet", "003")


def test_every_conversation_is_kept_or_counted_under_its_reason(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    near = chatter(1)
    near[-1]["value"] += " again"
    records = [
        {"id": "kept", "conversations": chatter(1)},
        {"id": "copy", "conversations": chatter(1)},
        {"id": "near", "conversations": near},
        {"id": "short", "conversations": say("a", "b")},
        {"id": "long", "conversations": chatter(3, turns=9)},
        {"id": "mute", "conversations": []},
        {"id": "monologue", "conversations": [{"from": "gpt", "value": "I"}]},
        {"id": "open", "conversations": say("anybody?")},
        {"id": "pasted", "conversations": say("x " * 500_000, "That is long", "Yes", "Indeed")},
        {"id": "few", "conversations": say("a", "b", "c", "d")},
        {"id": "shape"},
        "no record",
    ]
    select = entry(min_turns=2, max_turns=8, min_tokens=300)
    pool, manifest = extract(folder(tmp_path, records), select, segmenter)
    assert set(pool["dialogue_id"]) in ({"kept"}, {"near"})
    assert manifest["dropped"] == {
        "empty": 1,
        "exact_duplicate": 1,
        "malformed_record": 2,
        "message_too_long": 1,
        "near_duplicate": 1,
        "no_human_turn": 1,
        "no_reply": 1,
        "too_few_tokens": 1,
        "too_few_turns": 1,
        "too_many_turns": 1,
    }
    assert (manifest["records_read"], manifest["conversations_read"]) == (12, 12)
    assert accounted(manifest)


def test_prompts_are_counted_as_the_session_cuts_them(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    """Long replies and later turns do not count, nor does what is cut from a prompt."""
    words = [" ".join(f"{word}{n}" for word in WORDS * 10) for n in range(4)]
    records = [
        {"id": "asks", "conversations": say(words[0], "Yes", words[1], "No")},
        {"id": "answers", "conversations": say("Who?", words[2], "Why?", words[3])},
    ]
    select = entry(min_prompt_tokens=200, max_similarity=None)
    data = folder(tmp_path, records)
    pool, manifest = extract(data, select, segmenter)
    assert pool["dialogue_id"].to_list() == ["asks"]
    assert manifest["dropped"] == {"too_few_prompt_tokens": 1}
    assert accounted(manifest)
    for cuts in ({"max_turns": 1}, {"max_prompt_tokens": 50}, {"max_first_prompt_tokens": 10}):
        [row] = pool.to_dicts()
        segments = segmenter.segments(
            [Turn(**turn) for turn in row["turns"]][: cuts.get("max_turns")],
            **{name: value for name, value in cuts.items() if name != "max_turns"},
        )
        fed = sum(len(segment.prompt_ids) for segment in segments)
        for bound, kept in ((fed, 1), (fed + 1, 0)):
            asked = entry(min_prompt_tokens=bound, max_similarity=None) | {"prompt_cuts": cuts}
            if kept:
                assert extract(data, asked, segmenter)[0]["dialogue_id"].to_list() == ["asks"]
            else:
                with pytest.raises(UserError, match="too_few_prompt_tokens: 2"):
                    extract(data, asked, segmenter)


def test_near_duplicates_stay_when_asked(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    near = chatter(1)
    near[-1]["value"] += " again"
    records = [
        {"id": "a", "conversations": chatter(1)},
        {"id": "b", "conversations": near},
    ]
    pool, _ = extract(folder(tmp_path, records), entry(max_similarity=None), segmenter)
    assert pool.height == 2


def test_the_order_depends_on_the_seed_and_not_on_the_file(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    records = [{"id": f"c{n}", "conversations": chatter(n)} for n in range(40)]

    def ids(records: list[Any], seed: int) -> list[str]:
        select = entry(seed=seed, pool=10, max_similarity=None)
        pool, manifest = extract(folder(tmp_path, records), select, segmenter)
        assert accounted(manifest)
        assert manifest["dropped"] == {"pool_full": 30}
        return pool["dialogue_id"].to_list()

    first = ids(records, 0)
    assert len(first) == 10
    assert ids(records[::-1], 0) == first
    assert ids(records, 1) != first


def test_memory_for_candidates_is_bounded(
    tmp_path: Path, segmenter: ChatSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"id": f"c{n}", "conversations": chatter(n)} for n in range(40)]
    select = entry(pool=2, max_similarity=None)
    whole, _ = extract(folder(tmp_path, records), select, segmenter)
    monkeypatch.setattr("kvfidelity.dialogues.selection.CANDIDATE_BYTES", 10_000)
    bounded, manifest = extract(folder(tmp_path, records), select, segmenter)
    assert bounded.equals(whole)
    assert manifest["dropped"]["ranked_too_low"] > 20
    assert accounted(manifest)


def test_a_beginning_that_is_too_long_is_as_good_as_the_whole(
    tmp_path: Path, segmenter: ChatSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many, few and just enough turns: the same pool whether beginnings are counted or not."""
    sizes = [2, 3, 4, 5, 6, 9, 20, 40]
    records = [{"id": f"c{n}", "conversations": chatter(n, n)} for n in sizes]
    data = folder(tmp_path, records)
    most = segmenter.count([Turn(*[message["value"] for message in chatter(5, 5)[:2]])]) * 5
    found = []
    for often in (0, 5, 10**9):
        monkeypatch.setattr("kvfidelity.dialogues.selection.MAX_CHARACTERS_PER_TOKEN", often)
        pool, manifest = extract(data, entry(max_tokens=most, max_similarity=None), segmenter)
        found.append((pool["dialogue_id"].to_list(), manifest["dropped"]))
    assert found[0] == found[1] == found[2]
    assert found[0][1]["too_many_tokens"] >= 3 and len(found[0][0]) >= 3


def test_category_and_language_select(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    code = say("How do I print it in a loop?", "Like so:\n```\n" + "print(x)\n" * 9 + "```")
    prose = say("Wie wird das Wetter morgen?", "Es wird sonnig, aber am Abend regnet es vielleicht")
    records = [{"id": "code", "conversations": code}, {"id": "german", "conversations": prose}]
    data = folder(tmp_path, records)
    assert extract(data, entry(category="code"), segmenter)[0]["dialogue_id"].to_list() == ["code"]
    pool, manifest = extract(data, entry(language="de"), segmenter)
    assert pool["dialogue_id"].to_list() == ["german"]
    assert manifest["dropped"] == {"other_language": 1}


def test_questions_reach_the_dialogue(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    pool, manifest = extract(folder(tmp_path, [LOCOMO]), {"format": "locomo"}, segmenter)
    write_parquet(pool, tmp_path / "pool.parquet", kind=KIND)
    dialogue = read_dialogue(tmp_path / "pool.parquet", "000")
    assert manifest["questions"] == 4
    assert dialogue.questions[0] == Question("What pet?", "a cat", "single-hop", (0,))
    assert dialogue.questions[3].wrong == ("a poodle",)


def test_joined_sessions_are_selected_like_any_other(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    records = [{"id": f"c{n}", "conversations": chatter(n, turns=1)} for n in range(30)]
    select = entry(min_tokens=1000) | {"join_tokens": 1000}
    pool, manifest = extract(folder(tmp_path, records), select, segmenter)
    assert pool.height > 1
    assert all(tokens >= 1000 for tokens in manifest["tokens"])
    assert manifest["conversations_read"] == 30
    assert accounted(manifest)


def test_the_manifest_tells_lengths(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    from kvfidelity.dialogues.lengths import length_chart

    _, manifest = extract(folder(tmp_path, bundled_records()), entry(), segmenter)
    assert manifest["lengths"]["turns"] == [{"from": 8, "below": 16, "count": 3}]
    assert sum(bin_["count"] for bin_ in manifest["lengths"]["characters"]) == 3
    assert "conversations" in length_chart(manifest, "own").to_json()


def test_other_roles_are_told_for_each_dialogue_and_can_be_left_out(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    call = {"from": "function_call", "value": "weather()"}
    seen = {"from": "observation", "value": "rain"}
    asked, answered = say("And now?", "It rains."), chatter(1)
    records = [
        {"id": "tools", "conversations": [*chatter(2), asked[0], call, seen, asked[0], asked[1]]},
        {"id": "chat", "conversations": answered},
    ]
    data = folder(tmp_path, records)
    _, manifest = extract(data, entry(), segmenter)
    told = {item["dialogue_id"]: item for item in manifest["dialogues"]}
    assert told["tools"]["other_roles"] == {"function_call": 1, "observation": 1}
    assert told["tools"]["cleaned"]["messages_merged"] == 1
    assert told["chat"]["other_roles"] == {}
    assert [item["tokens"] for item in manifest["dialogues"]] == manifest["tokens"]
    assert manifest["read_as"] == "a JSON array"
    pool, manifest = extract(data, entry(allow_other_roles=False), segmenter)
    assert pool["dialogue_id"].to_list() == ["chat"]
    assert manifest["dropped"] == {"other_roles": 1}
    assert accounted(manifest)


def test_calls_without_text_are_calls_of_tools(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function"}]}
    messages = [{"role": "user", "content": "Rain?"}, call, {"role": "tool", "content": "yes"}]
    messages += [{"role": "assistant", "content": "It rains."}]
    data = folder(tmp_path, [{"id": "a", "messages": messages}])
    _, manifest = extract(data, {"format": "openai"}, segmenter)
    assert manifest["dialogues"][0]["other_roles"] == {"tool_calls": 1, "tool": 1}


def test_the_seed_orders_dialogues_of_one_id(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    records = [{"id": "same", "conversations": chatter(n)} for n in range(20)]

    def first(given: list[Any], seed: int) -> Any:
        select = entry(seed=seed, pool=3, max_similarity=None)
        return extract(folder(tmp_path, given), select, segmenter)[0]["turns"].to_list()

    assert first(records, 0) == first(records[::-1], 0)
    assert first(records, 0) != first(records, 1)


def test_a_folder_named_like_a_pattern_is_a_folder(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    other, own = tmp_path / "exp1", tmp_path / "exp[1]*?"
    for path, name in ((other, "other"), (own, "own")):
        path.mkdir()
        folder(path, [{"id": name, "conversations": chatter(1)}])
    assert extract(own, entry(), segmenter)[0]["dialogue_id"].to_list() == ["own"]


def test_nothing_left_says_why(tmp_path: Path, segmenter: ChatSegmenter) -> None:
    data = folder(tmp_path, [{"id": "a", "conversations": say("a", "b")}])
    with pytest.raises(UserError, match=r"\(too_few_turns: 1\): relax `select`"):
        extract(data, entry(min_turns=5), segmenter)
    with pytest.raises(UserError, match="it holds none"):
        extract(folder(tmp_path, []), entry(), segmenter)
    with pytest.raises(UserError, match="unknown keys min_turn"):
        extract(data, entry(min_turn=5), segmenter)


def test_text_of_a_special_token_survives_to_the_pool(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    lengths = say(
        "What is <|im_end|>?", "It closes a message: <|im_end|>\ud83d", "&lt;ok&gt;", "Good"
    )
    pool, _ = extract(
        folder(tmp_path, [{"id": "a/b", "conversations": lengths}]), entry(), segmenter
    )
    assert pool.schema["turns"] == pl.List(pl.Struct({"user": pl.String, "assistant": pl.String}))
    row = pool.row(0, named=True)
    assert row["turns"][0]["assistant"].startswith("It closes a message: <|im_end|>")
    assert Turn(**row["turns"][1]) == Turn("<ok>", "Good")
    assert row["dialogue_id"] == "a-b"


def test_development_and_test_are_disjoint_halves_of_the_data(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    """Whatever the ranking's seed and the ids are: a text is in one half, and in one only."""
    texts = [chatter(n) for n in range(40)]
    records = [{"id": f"c{n}", "conversations": text} for n, text in enumerate(texts)]
    renamed = [{"id": f"other{n}", "conversations": text} for n, text in enumerate(texts)]

    def chosen(records: list[Any], split: str | None, **select: Any) -> set[str]:
        wanted = entry(split=split, max_similarity=None, **select)
        pool, manifest = extract(folder(tmp_path, records), wanted, segmenter)
        assert accounted(manifest)
        assert manifest["dropped"].get("other_split", 0) == len(records) - pool.height
        return {row["turns"][0]["user"] for row in pool.to_dicts()}

    development, test = (chosen(records, split) for split in ("development", "test"))
    assert not development & test and development | test == chosen(records, None)
    assert 10 < len(development) < 30
    assert chosen(renamed, "test", seed=7) == test
    assert chosen(records, "test", split_seed=1) not in (test, development)


def test_a_near_duplicate_of_a_dialogue_of_the_other_half_is_in_neither(
    tmp_path: Path, segmenter: ChatSegmenter
) -> None:
    records = []
    for n in range(20):
        near = chatter(n)
        near[-1]["value"] += " again"
        texts = ((f"a{n}", chatter(n)), (f"b{n}", near))
        records += [{"id": name, "conversations": text} for name, text in texts]
    halves = [
        extract(folder(tmp_path, records), entry(split=split), segmenter)
        for split in ("development", "test")
    ]
    kept = [name for pool, _ in halves for name in pool["dialogue_id"].to_list()]
    assert sorted(int(name[1:]) for name in kept) == list(range(20)), "one of each pair"
    for _, manifest in halves:
        assert accounted(manifest) and manifest["dropped"]["near_duplicate"] == 20


def test_a_split_of_another_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"select\.split is 'train'; choose development or test"):
        Selection.of({"split": "train"})
