"""What a policy around another policy is."""

from __future__ import annotations

from dataclasses import dataclass

from kvfidelity.cache.policies.base import Policy, wrapped_policy
from kvfidelity.cache.view import CacheView
from kvfidelity.errors import UserError

#: What a policy declares as a constant of its class.
NEEDS = (
    *("needs_scores", "needs_output_projection"),
    *("needs_calibration", "needs_extra_forward"),
)


@dataclass(frozen=True)
class PolicyWrapper(Policy):
    """Ranks by the ranking of another policy, and needs what that one needs.

    A subclass is a frozen dataclass with `kind` and `priority`, as for any policy; it calls
    `self.policy.rank(view)`.
    """

    policy: Policy = wrapped_policy(  # noqa: RUF009 - it makes a field, as `parameter` does
        "snapkv", doc="whose ranking is used: a kind or an entry"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.policy.evicts:
            raise UserError(f"policy {self.kind}: {self.policy.kind} ranks nothing; wrap another")
        if self.policy.ragged:
            raise UserError(
                f"policy {self.kind}: {self.policy.kind} decides budgets as well as ranks; wrap "
                f"{self.kind} in {self.policy.kind}"
            )
        # Declared by each class; here it is the other policy's, and the dataclass is frozen.
        for name in NEEDS:
            object.__setattr__(self, name, getattr(self, name) or getattr(self.policy, name))
        if "keep_sets" not in vars(type(self)):
            object.__setattr__(self, "keep_sets", self.policy.keep_sets)

    @property
    def query_window(self) -> int:
        return self.policy.query_window

    def default_size(self, slots: int) -> int | None:
        return self.policy.default_size(slots)

    def should_evict(self, view: CacheView) -> bool:
        return self.policy.should_evict(view)
