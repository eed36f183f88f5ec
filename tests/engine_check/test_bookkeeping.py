"""Bookkeepings are what their names say, and the core's own modes are among them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvfidelity.cache.positions import PositionMode
from kvfidelity.decoding.engine import Engine
from kvfidelity.engine_check.bookkeeping import BY_NAME, USUAL_BASE, known_for, ranges_of
from kvfidelity.engine_check.engine_table import EngineTable, tokens_of
from kvfidelity.engine_check.probes import Eviction, Probe, ProbeSet

AFTER = 10
KEEP = (((0, 2), (6, 10)),)


def table(name: str) -> EngineTable:
    """After one eviction of ten tokens to 0, 1, 6, 7, 8, 9."""
    made = EngineTable(BY_NAME[name], AFTER)
    made.keep(made.slots_of(Eviction(AFTER, KEEP)))
    return made


@pytest.mark.parametrize(
    ("name", "positions", "following"),
    [
        ("stale", [0, 1, 6, 7, 8, 9], 6),
        ("original", [0, 1, 6, 7, 8, 9], 10),
        ("rerotated", [0, 1, 2, 3, 4, 5], 6),
        ("original_next_too_large", [0, 1, 6, 7, 8, 9], 11),
        ("rerotated_next_too_small", [0, 1, 2, 3, 4, 5], 5),
        ("original_without_first", [1, 6, 7, 8, 9], 10),
        ("rerotated_without_first_four", [0, 1], 2),
        ("rotated_twice", [0, 2, 8, 10, 12, 14], 6),
        ("rotated_backwards", [0, 1, 10, 11, 12, 13], 6),
        ("rerotated_next_seen", [0, 1, 2, 3, 4, 5], 10),
        ("only_sinks_rerotated", [-4, -3, 6, 7, 8, 9], 6),
    ],
)
def test_positions_after_one_eviction(name: str, positions: list[int], following: int) -> None:
    assert table(name).position[0, 0].tolist() == positions
    assert table(name).next_position == following


def test_heads_that_share_positions_get_those_of_the_first() -> None:
    keep = (((0, 2), (4, 8)), ((0, 2), (6, 10)))
    for name, second in (
        ("rerotated", [0, 1, 2, 3, 4, 5]),
        ("rerotated_as_first_head", [0, 1, 4, 5, 6, 7]),
        ("original", [0, 1, 6, 7, 8, 9]),
        ("original_of_first_head", [0, 1, 4, 5, 6, 7]),
    ):
        made = EngineTable(BY_NAME[name], AFTER)
        made.keep(made.slots_of(Eviction(AFTER, keep)))
        assert made.position[0, 1].tolist() == second, name


def test_an_error_of_the_next_position_adds_up_over_evictions() -> None:
    made = table("original_next_too_large")
    made.append(2)
    made.keep(torch.tensor([0, 1, 4, 5, 6, 7]))
    assert made.next_position == 14
    assert made.position[0, 0].tolist() == [0, 1, 8, 9, 11, 12]


def test_a_wrong_sign_moves_keys_by_each_shift_once() -> None:
    made = table("rotated_backwards")
    made.append(2)
    made.keep(torch.tensor([0, 1, 4, 5, 6, 7]))
    assert made.position[0, 0].tolist() == [0, 1, 14, 15, 8, 9]


def test_ranges_and_tokens_are_the_same() -> None:
    tokens = [0, 1, 2, 7, 9, 10]
    assert ranges_of(tokens) == [[0, 3], [7, 8], [9, 11]]
    assert tokens_of(ranges_of(tokens)).tolist() == tokens


def test_expected_answers_of_modes_are_those_of_the_core_in_that_mode(
    engine: Engine, probe_set: ProbeSet
) -> None:
    probe = probe_set.find("medium_scattered")
    assert probe is not None
    for mode in PositionMode:
        cache = engine.new_cache(mode)
        after = probe.evictions[0].after
        engine.feed(cache, probe.tokens[:after])
        cache.keep(tokens_of(probe.evictions[0].keep[0]))
        start, stop = probe.scored
        hidden = engine.feed(cache, probe.tokens[after : stop - 1])
        nll = engine.nll(hidden, probe.tokens[start:stop])
        found = probe.expected_of(mode.value).logprob
        np.testing.assert_allclose(found, -nll.numpy(), atol=1e-4)


def names_together(probe: Probe) -> list[set[str]]:
    return [set(each.names) for each in probe.expected]


def test_a_prefix_cannot_tell_stale_and_a_suffix_cannot_tell_original(probe_set: ProbeSet) -> None:
    prefix, suffix = probe_set.find("short_prefix"), probe_set.find("short_suffix")
    assert prefix is not None and suffix is not None
    assert {"stale", "rerotated"} in names_together(prefix)
    assert {"original", "rerotated"} in names_together(suffix)


def test_no_two_bookkeepings_agree_on_all_probes(probe_set: ProbeSet) -> None:
    names = {each.name for each in known_for(USUAL_BASE)}
    assert names < set(BY_NAME)
    for name in names:
        groups = [
            set(each.names) for probe in probe_set if probe.evictions for each in probe.expected
        ]
        same = names.intersection(*(group for group in groups if name in group))
        assert same == {name}


def test_the_long_conversation_goes_beyond_the_trained_window(
    engine: Engine, probe_set: ProbeSet
) -> None:
    assert max(len(probe.tokens) for probe in probe_set) > engine.window
