"""What one run is: a cell of the grid with everything that its artifact depends on."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from kvfidelity.errors import UserError

REPLIES = ("reference", "own")


@dataclass(frozen=True)
class RunSpec:
    """One (model, dataset, policy, positions, threshold, seed) for one dialogue.

    model, dataset, policy, threshold: names in the config. kind, parameters: of the policy.
    positions: stale, original or rerotated. trigger, at, target: of the threshold; sizes as
    written ("600MiB", "0.5win"), `at` None for the baseline.
    replies: "reference" teacher-forces the dataset's replies, "own" lets the model's own enter.
    max_new_tokens: of an own reply; with `replies: reference` the reply is generated on a copy of
        the cache and dropped, and 0 generates none.
    own_reply_turns: with `replies: reference`, own replies only in the last so many turns; None
        for all.
    temperature, top_p: sampling; temperature 0 is greedy.
    feed_end_of_turn: with `replies: own`, whether the end-of-turn token enters the cache after a
        reply, as the chat template has it.
    max_turns, max_prompt_tokens, max_first_prompt_tokens: cuts, None for none; see
        `ChatSegmenter.segments`.
    score_every_run: collect attention scores even where the policy needs none, so that
        attention-weighted metrics exist for all.
    share_prefix: compute what lies before the first eviction once for all policies.
    recall: questions about what was said before, see `generation.recall.RecallSetting`.
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
            UserError: no JSON object, or keys that a run does not have.
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
