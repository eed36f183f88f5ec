"""A loaded model, ready to feed tokens into managed caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from kvfidelity.cache.attach import attach, cache_argument, new_cache
from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.positions import PositionMode
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.metrics.likelihood import kl_divergence, token_nll
from kvfidelity.models.load import load_model

if TYPE_CHECKING:
    from kvfidelity.decoding.sequence import Reply, SequenceState

# Rows of logits made at once: a vocabulary of 128k takes 130 MB in fp32.
LOGIT_ROWS = 256
# Tokens fed in one forward: what a forward holds beside the cache grows with them.
CHUNK = 8192
# On a GPU a long prompt starts with a round number of tokens: the fastest attention for it has to
# be planned anew for every length.
LONG_PROMPT, ROUND_LENGTH = 4096, 1024


class Scheduler(Protocol):
    """Where replies of several runs are decoded together; see `decoding.scheduler`."""

    def decode(self, sequence: SequenceState) -> Reply:
        """The reply, once it is made."""

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Let the other runs go on until it holds."""

    def on_out_of_memory(self) -> None:
        """Say that memory ran out; raises RetryAloneError unless the run had all of it to
        itself."""


@dataclass(frozen=True)
class Engine:
    """A model attached to managed caches, its tokenizer's segmenter, and what they imply.

    window: trained window in tokens. token_bytes: keys and values of one token over all layers.
    chunk: at most so many tokens are fed in one forward. hub: where replies are decoded together
    with those of other runs, None for alone. captured: decode steps captured so far.
    """

    model: Any
    segmenter: ChatSegmenter
    tokenizer: Any
    window: int
    token_bytes: int
    chunk: int = CHUNK
    scheduler: Scheduler | None = None
    graphs: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, model_dir: Path, dtype: str, device: str, chunk: int = CHUNK) -> Engine:
        """Load a converted model directory.

        Args:
            chunk: at most so many tokens are fed in one forward.

        Raises:
            UserError: no such directory, an unsupported architecture, no such device.
        """
        model, tokenizer = load_model(model_dir, dtype, device)
        engine = replace(cls.from_model(model, tokenizer), chunk=chunk)
        if engine.device.type == "cuda":
            engine._warm_up()
        return engine

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any) -> Engine:
        """Wrap a loaded causal language model; it is attached to managed caches."""
        return cls.from_parts(model, ChatSegmenter(tokenizer), tokenizer)

    @classmethod
    def from_parts(cls, model: Any, segmenter: Any, tokenizer: Any) -> Engine:
        """The same with a segmenter of one's own."""
        attach(model)
        config = model.config
        size = getattr(config, "head_dim", None)
        size = size or config.hidden_size // config.num_attention_heads
        element = torch.empty(0, dtype=model.dtype).element_size()
        return cls(
            model=model,
            segmenter=segmenter,
            tokenizer=tokenizer,
            window=config.max_position_embeddings,
            token_bytes=2 * config.num_hidden_layers * config.num_key_value_heads * size * element,
        )

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        device: torch.device = self.model.device
        return device

    @property
    def frequencies(self) -> Tensor:
        """Rotary inverse frequencies [r / 2]."""
        inverse: Tensor = self.model.get_decoder().rotary_emb.rotary.inv_freq
        return inverse

    def new_cache(self, positions: str, **options: Any) -> ManagedCache:
        """An empty cache; see ManagedCache for the options."""
        return new_cache(self.model, positions, **options)

    @torch.inference_mode()
    def feed(self, cache: ManagedCache, ids: Sequence[int]) -> Tensor:
        """Feed tokens as one forward, in chunks that bound its memory.

        Returns:
            Hidden states before the output layer [len(ids), hidden]; row j predicts token j + 1.
        """
        tokens = torch.tensor([list(ids)], device=self.device)
        first, *rest = torch.split(tokens, self._chunks(len(ids), cache.size), dim=1)
        parts = [self.forward(first, cache)[0]]
        for chunk in rest:
            with cache.continuing():
                parts.append(self.forward(chunk, cache)[0])
        return torch.cat(parts) if rest else parts[0]

    def _warm_up(self) -> None:
        """Compile what a prompt needs, with and without scores, before anything is timed."""
        for scored in (True, False):
            cache = self.new_cache(PositionMode.ORIGINAL, collect_scores=scored)
            for count in (64, 2):
                self.feed(cache, [0] * count)

    def _chunks(self, count: int, cached: int) -> list[int]:
        """Sizes of the forwards that feed so many tokens."""
        sizes = []
        if self.device.type == "cuda" and not cached and min(count, self.chunk) >= LONG_PROMPT:
            sizes.append(min(count, self.chunk) // ROUND_LENGTH * ROUND_LENGTH)
        while (left := count - sum(sizes)) > 0:
            sizes.append(min(left, self.chunk))
        return sizes

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: AttentionCache) -> Tensor:
        """One forward of int64 [B, q] tokens; hidden states [B, q, hidden]."""
        decoder = self.model.get_decoder()
        out = decoder(input_ids=tokens, use_cache=True, **{cache_argument(decoder): cache})
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [m, vocabulary] of hidden states [m, hidden]."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    @torch.inference_mode()
    def nll(self, hidden: Tensor, ids: Sequence[int]) -> Tensor:
        """Nats per token of `ids` [m], predicted by `hidden` [m, hidden]; fp32 [m] on the CPU."""
        targets = torch.tensor(list(ids), device=self.device)
        parts = [
            token_nll(self.logits(rows), targets[start : start + LOGIT_ROWS])
            for start, rows in _blocks(hidden)
        ]
        return torch.cat(parts).cpu()

    @torch.inference_mode()
    def kl_divergence(self, baseline: Tensor, managed: Tensor) -> Tensor:
        """KL(full || managed) of what two runs' hidden states [m, hidden] predict; fp32 [m]."""
        parts = [
            kl_divergence(
                self.logits(rows.to(self.device)), self.logits(managed[start : start + LOGIT_ROWS])
            )
            for start, rows in _blocks(baseline)
        ]
        return torch.cat(parts).cpu()

    def now(self) -> float:
        """Seconds on a steady clock, once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _blocks(hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, hidden.shape[0], LOGIT_ROWS):
        yield start, hidden[start : start + LOGIT_ROWS]
