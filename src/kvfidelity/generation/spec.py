"""What a run depends on: a cell of the grid, with all of its settings."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from kvfidelity.errors import UserError

REPLIES = ("reference", "own")


@dataclass(frozen=True)
class RunSpec:
    """One cell (model, dataset, policy, positions, threshold, seed), to be run on a dialogue.

    model, dataset, policy, threshold: names in the config. kind, parameters: of the policy.
    positions: a PositionMode's value. trigger, at, target: of the threshold; sizes as
    written ("600MiB", "0.5win"), `at` None for the baseline.
    replies: "reference" teacher-forces the dataset's replies, "own" continues with the model's own.
    max_new_tokens: of an own reply; with `replies: reference` the reply is generated on a copy of
        the cache and dropped, and 0 generates none.
    own_reply_turns: with `replies: reference`, the number of last turns in which a reply is
        generated; None for all turns.
    temperature, top_p: sampling; temperature 0 is greedy.
    feed_end_of_turn: with `replies: own`, whether the end-of-turn token enters the cache after a
        reply, as the chat template has it.
    max_turns, max_prompt_tokens, max_first_prompt_tokens: limits, None for no limit; see
        `ChatSegmenter.segments`.
    score_every_run: collect attention scores even if the policy needs none, so that
        attention-weighted metrics exist for all.
    disruption_window: latest queries over which each eviction's disruption is measured; 0: not.
    share_prefix: compute the turns before the first eviction once for all policies.
    recall: questions about earlier messages, see `generation.recall.RecallSetting`.
    policy_files: where a policy of the user's own is. policy_digest: of the policy's code.
    """

    model: str
    dataset: str
    policy: str
    kind: str
    positions: str
    threshold: str
    model_revision: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    trigger: str = "turn"
    at: str | None = None
    target: str | None = None
    seed: int = 0
    replies: str = "reference"
    max_new_tokens: int = 0
    own_reply_turns: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    max_turns: int | None = None
    max_prompt_tokens: int | None = None
    max_first_prompt_tokens: int | None = None
    feed_end_of_turn: bool = True
    score_every_run: bool = False
    disruption_window: int = 0
    share_prefix: bool = True
    recall: dict[str, Any] = field(default_factory=dict)
    policy_files: tuple[str, ...] = ()
    policy_digest: str = ""

    def __post_init__(self) -> None:
        if self.replies not in REPLIES:
            raise UserError(f"replies is {self.replies!r}; choose one of {', '.join(REPLIES)}")
        if self.replies == "own" and self.max_new_tokens < 1:
            raise UserError("replies: own needs max_new_tokens of at least 1")

    @classmethod
    def from_json(cls, text: str) -> RunSpec:
        """Read back what `to_json` wrote.

        Raises:
            UserError: not a JSON object, or unknown keys.
        """
        try:
            values = json.loads(text)
            values["policy_files"] = tuple(values.get("policy_files", ()))
            return cls(**values)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"run specification cannot be read: {error}") from None

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)
