"""Which runs are computed before their jobs ask: `worker.ahead`, without a worker."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvfidelity.worker.ahead import BATCHES_AHEAD, AheadPlan
from kvfidelity.worker.runs import Client, Run, RunContent

POOL = Path(__file__)  # any file: a run's content has its pool's time and size


def content(number: int) -> RunContent:
    return RunContent.of("{}", str(POOL), f"{number:03d}")


def answer(*numbers: int, more: bool = False) -> bytes:
    entries = [{"spec": "{}", "pool": str(POOL), "dialogue": f"{n:03d}"} for n in numbers]
    return json.dumps({"next": entries, "more": more}).encode() + b"\n"


@pytest.fixture
def client() -> Iterator[Client]:
    one, other = socket.socketpair()
    with one, other:
        yield Client(one, plans=True)


@example([[0, 2, 6, 8, *range(10, 16), 0]], set(), {1, 3, 4, 5, 7, 9})  # a run named twice
@given(
    st.lists(st.lists(st.integers(0, 40), max_size=40), max_size=4),
    st.sets(st.integers(0, 40)),
    st.sets(st.integers(0, 40), max_size=6),
)
def test_no_run_is_started_twice_and_no_more_than_there_is_room_for(
    answers: list[list[int]], ended: set[int], running: set[int]
) -> None:
    one, other = socket.socketpair()
    with one, other:
        asked = Client(one, plans=True)
        plan, runs = AheadPlan(2), [Run(content(number)) for number in sorted(running)]
        for number in ended:
            plan.note_ended(content(number))
        for numbers in answers:
            asked.inbox = answer(*numbers)
            plan.take(asked, runs)
            for one_due in plan.due(runs):
                runs.append(Run(one_due))
    found = [run.content for run in runs if run.content]
    assert len(found) == len(set(found))
    assert len(runs) <= max(plan.most, len(running))
    assert not set(found[len(running) :]) & {content(number) for number in ended}
    named = {content(number) for numbers in answers for number in numbers}
    left = named - {content(number) for number in ended} - set(found)
    assert bool(plan) == bool(left) and (not left or len(runs) == plan.most)


def test_one_client_at_a_time_is_asked_until_it_has_named_the_rest(client: Client) -> None:
    plan = AheadPlan(4)
    assert plan.most == BATCHES_AHEAD * 4
    plan.ask(client, plan.most - 3)
    assert plan.asked is None, "there is enough to do"
    plan.ask(Client(client.connection), 0)
    assert plan.asked is None, "it cannot name runs"
    plan.ask(client, 0)
    assert plan.asked is client
    plan.ask(Client(client.connection, plans=True), 0)
    assert plan.asked is client
    client.inbox = answer(1, more=True)
    plan.take(client, [])
    assert plan.asked is None and not client.gone and not client.inbox
    plan.ask(client, 0)
    client.inbox = answer(2)
    plan.take(client, [])
    plan.ask(client, 0)
    assert plan.asked is None, "it has named the rest"
    plan.reopen()
    plan.ask(client, 0)
    assert plan.asked is client


def test_once_stopped_nothing_is_computed_ahead(client: Client) -> None:
    plan = AheadPlan(4)
    for named in (answer(1, 2), answer(3)):
        client.inbox = named
        plan.take(client, [])
        plan.stop()
        assert not plan and not list(plan.due([]))
    plan.reopen()
    plan.ask(client, 0)
    assert plan.asked is None


@pytest.mark.parametrize("text", [b"{}\n", b"[]\n", b"no\n", b'{"next": [{}], "more": 1}\n'])
def test_an_answer_that_cannot_be_read_costs_its_client_the_connection(
    client: Client, text: bytes
) -> None:
    plan = AheadPlan(4)
    plan.ask(client, 0)
    client.inbox = text
    plan.take(client, [])
    assert client.gone and plan.asked is None and not plan
