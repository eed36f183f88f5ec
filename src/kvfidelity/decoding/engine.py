"""A loaded model, ready to feed tokens into managed caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from kvfidelity.cache.attach import attach, new_cache
from kvfidelity.cache.hooks import cache_argument, output_logits
from kvfidelity.cache.interface import AttentionCache
from kvfidelity.cache.managed import ManagedCache
from kvfidelity.cache.overflow import first_overflow, overflow_error
from kvfidelity.cache.positions import PositionMode
from kvfidelity.cache.sections import join, sections_of
from kvfidelity.cache.tree import TokenTree
from kvfidelity.decoding.compiled import FeedCompiler
from kvfidelity.decoding.feeding import Feed, feed_together
from kvfidelity.decoding.scoring import Scores, Scoring, score_together
from kvfidelity.dialogues.segments import ChatSegmenter
from kvfidelity.errors import UserError
from kvfidelity.models.end_tokens import end_token_ids
from kvfidelity.models.load import load_model, replace_weights

if TYPE_CHECKING:
    from kvfidelity.decoding.sequence import Reply, SequenceState

# Tokens fed in one forward: its memory grows with them.
CHUNK = 8192


class Scheduler(Protocol):
    """Feeds, scores and decodes several runs in one batch; see `decoding.scheduler`."""

    def feed(self, feed: Feed) -> Tensor:
        """Feed tokens; see `Engine.feed`."""

    def score(self, request: Scoring) -> Scores:
        """Score hidden states; see `Engine.score`."""

    def decode(self, sequence: SequenceState) -> Reply:
        """Decode a reply to its end."""

    def restart_count(self) -> None:
        """Count the calling run's `concurrency` from now on."""

    def concurrency(self) -> int:
        """Most runs that were active at once since `restart_count`, the calling run included."""

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Block the calling run until `condition` holds; the other runs continue."""

    def on_out_of_memory(self) -> None:
        """Report that memory ran out.

        Raises:
            RestartError: other runs share the memory, so the run must be repeated.
        """


class SectionsFed(NamedTuple):
    """hidden: [tokens of all sections, hidden]. ends: for each section a cache with the scores and
    recent queries after it, to be read, not fed: its keys are those of the sequence's cache."""

    hidden: Tensor
    ends: list[ManagedCache]


@dataclass(frozen=True)
class Engine:
    """A model attached to managed caches, and its tokenizer.

    segmenter: turns dialogues into token ids by the chat template. window: trained window in
    tokens. token_bytes: bytes of one token's keys and values, over all layers. chunk: most tokens
    fed in one forward. scheduler: decodes the replies of several runs together; None decodes each
    alone. model_dir: where the model was loaded from, if known. calibrations: the folder in which
    calibrations are stored; None stores none. graphs: decode steps captured so far. feed_compiler:
    compiles layers that feed.
    """

    model: Any
    segmenter: ChatSegmenter
    tokenizer: Any
    window: int
    token_bytes: int
    chunk: int = CHUNK
    scheduler: Scheduler | None = None
    model_dir: Path | None = None
    calibrations: Path | None = None
    graphs: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    feed_compiler: FeedCompiler = field(default_factory=FeedCompiler, repr=False, compare=False)

    @classmethod
    def load(cls, model_dir: Path, dtype: str, device: str, chunk: int = CHUNK) -> Engine:
        """Load a converted model directory.

        Args:
            chunk: most tokens fed in one forward.

        Raises:
            UserError: no such directory, an unsupported architecture, an unknown device.
        """
        model, tokenizer = load_model(model_dir, dtype, device)
        engine = cls.from_model(model, tokenizer, end_token_ids(model_dir))
        engine = replace(engine, chunk=chunk, model_dir=model_dir)
        if engine.device.type == "cuda":
            engine._warm_up()
        return engine

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, end_ids: Set[int] = frozenset()) -> Engine:
        """Wrap a loaded causal language model; it is attached to managed caches.

        Args:
            end_ids: tokens that end a reply, besides the tokenizer's and the chat template's own.

        Raises:
            UserError: a tokenizer with tokens that the model has no embedding for, or whose chat
                template cannot be fed turn by turn.
        """
        _check_vocabulary(model, tokenizer)
        return cls.from_parts(model, ChatSegmenter(tokenizer, end_ids), tokenizer)

    @classmethod
    def from_parts(cls, model: Any, segmenter: Any, tokenizer: Any) -> Engine:
        """Like `from_model`, with a segmenter that is given."""
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

    def with_weights(self, model_dir: Path) -> Engine:
        """An engine of a model that differs from this one in its weights alone.

        It takes this one's place: the weights are copied over its own, so this one, its caches and
        what was computed with them must not be used any more. What was compiled is kept.

        Args:
            model_dir: see `models.checksums.differ_in_weights_alone`.

        Raises:
            UserError: as `load`; then this engine is as it was.
        """
        replace_weights(self.model, model_dir)
        self.model.get_decoder().rotary_emb.calibration = None
        return replace(self, model_dir=model_dir)

    @property
    def device(self) -> torch.device:
        """The model's device."""
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

    def feed(
        self, cache: ManagedCache, ids: Sequence[int], *, latest_is_last: bool = False
    ) -> Tensor:
        """Feed tokens into a cache as one forward, split into chunks that limit its memory.

        With a scheduler they share forwards with what other runs feed at the same time.

        Args:
            latest_is_last: afterwards the latest scores are those of the last token alone, as if it
                had been fed by a forward of its own.

        Returns:
            Hidden states before the output layer [len(ids), hidden]; row j predicts token j + 1.
        """
        return self._feed(Feed(cache, ids, latest_is_last=latest_is_last))

    @torch.inference_mode()
    def feed_sections(self, cache: ManagedCache, sections: Sequence[Sequence[int]]) -> SectionsFed:
        """Feed consecutive sections of a sequence in one forward, of at most `chunk` tokens.

        Args:
            cache: not empty; at the end it holds all sections.
        """
        parts = sections_of(cache, [len(ids) for ids in sections])
        ids = [token for section in sections for token in section]
        hidden = self._feed(Feed(cache, ids, sections=parts))
        join(cache, parts)
        return SectionsFed(hidden, [part.cache for part in parts])

    def feed_tree(self, cache: ManagedCache, tree: TokenTree) -> Tensor:
        """Hidden states [m, hidden] of alternative continuations of a cache, which is not changed.

        Row j predicts the tokens that follow the tree's token j.
        """
        return self._feed(Feed(cache, tree.ids, tree))

    def _feed(self, feed: Feed) -> Tensor:
        return self.scheduler.feed(feed) if self.scheduler else feed_together(self, [feed])[0]

    def _warm_up(self) -> None:
        """Compile the prompt's kernels, with and without scores, before anything is timed."""
        for scored in (True, False):
            cache = self.new_cache(PositionMode.ORIGINAL, collect_scores=scored)
            for count in (64, 2):
                self.feed(cache, [0] * count)

    @torch.inference_mode()
    def forward(self, tokens: Tensor, cache: AttentionCache) -> Tensor:
        """One forward of tokens int64 [B, q]; hidden states [B, q, hidden]."""
        decoder = self.model.get_decoder()
        with self._compiled(decoder.layers, cache):
            out = decoder(input_ids=tokens, use_cache=True, **{cache_argument(decoder): cache})
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _compiled(self, layers: Any, cache: AttentionCache) -> AbstractContextManager[None]:
        """Inside, layers are compiled where that is worth its time."""
        if self.device.type != "cuda":
            return nullcontext()
        from kvfidelity.cache.triton.fed_caches import FedCaches

        if not isinstance(cache, FedCaches):
            return nullcontext()
        config = self.model.config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        return self.feed_compiler.during(layers, cache, heads, groups)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [m, vocabulary] of hidden states [m, hidden]."""
        return output_logits(self.model, hidden)

    def nll(self, hidden: Tensor, ids: Sequence[int]) -> Tensor:
        """Nats per token of `ids` [m], predicted by `hidden` [m, hidden]; fp32 [m] on the CPU.

        Raises:
            ModelOverflowError: a logit is NaN or infinite.
        """
        return self.score(hidden, ids).nll

    def score(self, hidden: Tensor, ids: Sequence[int], baseline: Tensor | None = None) -> Scores:
        """NLL of `ids` [m], predicted by `hidden` [m, hidden], and its divergence from a baseline.

        With a scheduler, what several runs score at the same time is scored together.

        Args:
            baseline: hidden states [m, hidden] of the baseline at the same tokens.

        Raises:
            ModelOverflowError: a logit is NaN or infinite.
        """
        request = Scoring(hidden, ids, baseline)
        scheduler = self.scheduler
        found = scheduler.score(request) if scheduler else score_together(self, [request])[0]
        for values in found:
            if values is not None and not bool(values.isfinite().all()):
                raise overflow_error(self.model.dtype)
        return found

    def refuse_overflow(self, hidden: Tensor, cache: ManagedCache) -> None:
        """Refuse hidden states [m, hidden] that are not finite; waits for the device.

        Raises:
            ModelOverflowError: names the first layer of `cache` that is not finite.
        """
        if not bool(hidden.isfinite().all()):
            layer = first_overflow((each.live_keys, each.live_values) for each in cache.layers)
            raise overflow_error(self.model.dtype, layer)

    def now(self) -> float:
        """Seconds on a monotonic clock, after the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    beyond = sorted(
        (index, token) for token, index in tokenizer.get_vocab().items() if index >= rows
    )
    if beyond:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path} has {len(beyond)} tokens that the model has no "
            f"embedding for ({beyond[0][1]!r} is number {beyond[0][0]}, the embedding has {rows} "
            "rows): use the tokenizer that belongs to the model"
        )
