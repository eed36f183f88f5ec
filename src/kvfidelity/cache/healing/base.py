"""What a healing is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from kvfidelity.cache.ragged import RaggedKeepSet
from kvfidelity.cache.slots import as_grid
from kvfidelity.errors import UserError

if TYPE_CHECKING:
    from kvfidelity.cache.managed import ManagedCache
    from kvfidelity.cache.policies.base import Policy
    from kvfidelity.cache.positions import PositionMode

KeepSet = Tensor | RaggedKeepSet
#: A turn's token ids, end of turn included, of a message and its short reply.
Encode = Callable[[str], tuple[int, ...]]


@dataclass
class FedMessages:
    """What one run feeds, for healings that feed tokens too and policies that look at messages. The
    tokens themselves are in the cache's `transcript`.

    feed: feeds tokens into a cache, as the run itself does.
    starts: token indices at which messages begin.
    """

    feed: Callable[[ManagedCache, Sequence[int]], Any]
    starts: list[int] = field(default_factory=list)

    def add_turn(self, start: int, prompt: int) -> None:
        """Note a turn: a message at token index `start`, and its reply `prompt` tokens later."""
        self.starts += (start, start + prompt)

    def copy(self) -> FedMessages:
        """An independent copy."""
        return FedMessages(self.feed, [*self.starts])


@dataclass(frozen=True)
class Choice:
    """kept: the keep set, with the healing's own slots. ghosts: which slots of it are those, int64
    [L', G', c], numbered before the eviction; None for none."""

    kept: KeepSet
    ghosts: Tensor | None = None

    @property
    def survivors(self) -> KeepSet:
        """The keep set without ghosts, whose tokens are gone: int64 [L', G', k - c] with some."""
        if self.ghosts is None or isinstance(self.kept, RaggedKeepSet):
            return self.kept
        kept = as_grid(self.kept)
        own = (kept[..., None] == self.ghosts.to(kept.device)[..., None, :]).any(-1)
        return kept[~own].view(*kept.shape[:-1], -1)


@dataclass(frozen=True)
class Healed:
    """slots: cached slots that hold no token of the conversation. tokens: of these, how many were
    fed after the eviction. nbytes: bytes beyond keys and values."""

    slots: int = 0
    tokens: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Healing:
    """Does something about a gap; this one does nothing. Frozen, so that runs can share it.

    A subclass is a frozen dataclass with `kind`, its name in the config.
    """

    kind: ClassVar[str]
    #: Whether it does anything at an eviction.
    acts: ClassVar[bool] = True
    #: Whether it acts on text, which is possible between turns only.
    between_turns: ClassVar[bool] = False
    #: Whether it changes attention from the eviction on; the kernels of a GPU do not compute it.
    changes_attention: ClassVar[bool] = False
    #: Whether it reads or writes slots; every kv head must then hold the same number of them.
    edits_slots: ClassVar[bool] = False
    #: Whether it reads the text again that was fed; the cache then keeps it.
    needs_text: ClassVar[bool] = False
    #: Whether the whole cache must have one keep set.
    needs_one_keep_set: ClassVar[bool] = False
    #: The only position mode that it makes sense under; None for all.
    only_positions: ClassVar[str | None] = None

    @property
    def query_window(self) -> int:
        """How many of the latest queries it reads."""
        return 0

    def check(
        self,
        trigger: str,
        positions: PositionMode | str,
        *,
        on_gpu: bool,
        policy: Policy | None = None,
    ) -> None:
        """Refuse a setting that it cannot act under.

        Args:
            on_gpu: whether the kernels of a GPU decode.
            policy: whose keep sets it acts on; None if that is not known yet.

        Raises:
            UserError: names the healing and what to set.
        """
        if self.between_turns and trigger != "turn":
            raise UserError(
                f"healing {self.kind} acts between turns: set trigger: turn, not {trigger}"
            )
        if self.only_positions not in (None, str(positions)):
            raise UserError(
                f"healing {self.kind} leaves no gap in positions, so all modes are one: set "
                f"positions: {self.only_positions}, not {positions}"
            )
        if self.changes_attention and on_gpu and trigger not in ("turn", "prompt"):
            raise UserError(
                f"healing {self.kind} changes attention, and the decode steps of a GPU cannot "
                f"begin to do so inside a reply: set trigger: turn or prompt, not {trigger}"
            )
        if policy is not None:
            self.check_policy(policy)

    def check_policy(self, policy: Policy) -> None:
        """The part of `check` that is about the policy's keep sets."""
        if policy.ragged and (self.edits_slots or self.changes_attention):
            raise UserError(
                f"healing {self.kind} needs as many slots in every kv head, and policy "
                f"{policy.kind} keeps different numbers; use another policy"
            )
        if self.needs_one_keep_set and policy.keep_sets != "shared":
            raise UserError(self._one_keep_set(policy.kind))

    def _one_keep_set(self, policy: str) -> str:
        return (
            f"healing {self.kind} needs one keep set for the whole cache, and {policy} keeps other "
            "tokens in each layer or kv head: use granularity shared, or another policy"
        )

    def prepared(self, encode: Encode) -> Healing:
        """This healing with what it says as token ids."""
        return self

    def message(self, text: str) -> str:
        """The user's next message after an eviction, given what it would be."""
        return text

    def choose(self, keep: Callable[[int], KeepSet], budget: int, slots: int) -> Choice:
        """The keep set of `budget` slots in all.

        Args:
            keep: the policy's keep set of that many slots.
            slots: how many there are now.

        Raises:
            UserError: the healing cannot follow such a keep set.
        """
        return Choice(keep(budget))

    def read(self, cache: ManagedCache, choice: Choice) -> Any:
        """What `write` needs of the slots that are about to be evicted."""
        return None

    def write(self, cache: ManagedCache, found: Any, messages: FedMessages | None) -> Healed:
        """Change the cache, from which the others have been evicted.

        Args:
            found: what `read` returned.
            messages: of the run; they grow by what is fed.
        """
        return Healed()


def known_messages(healing: Healing, messages: FedMessages | None) -> FedMessages:
    """What the run feeds.

    Raises:
        UserError: the evictor does not know it.
    """
    if messages is None:
        raise UserError(
            f"healing {healing.kind} feeds tokens: set `evictor.messages`, or run it in the "
            "workflow"
        )
    return messages
