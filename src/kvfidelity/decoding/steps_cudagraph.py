"""Decode steps on a GPU: one CUDA graph, whatever the caches' lengths, positions and addresses.

A step feeds each sequence's token, chooses the next one and stores it, all on the device. The host
launches steps and only sometimes checks which sequences have ended. Steps skip an ended sequence,
so a late check costs time and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from kvfidelity.cache.triton.head_step_table import HeadStepTable
from kvfidelity.cache.triton.step_table import StepTable
from kvfidelity.decoding.compiled import compile_for_steps, layers_called_by
from kvfidelity.decoding.engine import Engine
from kvfidelity.decoding.sampling import sample_tokens
from kvfidelity.decoding.sequence import SequenceState
from kvfidelity.metrics.likelihood import token_nll

# A check for ended sequences is made every this many steps. It reads the state copied at the check
# before, so that the device always has work queued; an ended reply wastes up to twice this many
# steps.
CHECK_EVERY = 4


class GraphSteps:
    """See `decoding.sequence.Steps`.

    Args:
        batch_size: most sequences decoded at once.
        sampled: whether tokens may be sampled; a greedy graph has no sorting in it.
        max_new_tokens: longest reply in tokens.
        ragged: whether kv heads may hold different numbers of slots; other caches are served too.
        compiled: compile the decoder layers for the step (once for all layers, about ten seconds),
            which fuses the operations between matrix products and attention.
    """

    def __init__(
        self,
        engine: Engine,
        batch_size: int,
        *,
        sampled: bool,
        max_new_tokens: int,
        ragged: bool = False,
        compiled: bool = True,
    ) -> None:
        self._engine = engine
        self._sequences: dict[int, SequenceState] = {}
        self._sampled = sampled
        device = engine.device
        decoder = engine.model.get_decoder()
        rotary = decoder.rotary_emb
        half = rotary.table(1, device)[0].shape[1]
        layers = len(decoder.layers)
        if ragged:
            groups = engine.model.config.num_key_value_heads
            self._table: StepTable = HeadStepTable(layers, batch_size, groups, half, device)
        else:
            self._table = StepTable(layers, batch_size, half, device)
        self._token = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self._fed = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._ids = torch.zeros(batch_size, max_new_tokens + 1, dtype=torch.int64, device=device)
        self._nll = torch.zeros(batch_size, max_new_tokens + 1, dtype=torch.float32, device=device)
        self._uniform = torch.zeros(
            batch_size, max_new_tokens + 2, dtype=torch.float64, device=device
        )
        self._sampling = torch.zeros(2, batch_size, dtype=torch.float64, device=device)
        self._stops = torch.tensor(sorted(engine.segmenter.stop_ids), device=device)
        self._alive_on_host = torch.zeros(batch_size, dtype=torch.int64, pin_memory=True)
        self._copied: torch.cuda.Event | None = None
        self._launched = 0
        #: Tokens fed and whether alive, of every sequence after the latest step; None: not read.
        self._counters: tuple[list[int], list[int]] | None = None
        self._graph = self._capture(decoder, compiled)

    def admit(self, index: int, sequence: SequenceState) -> None:
        is_new = index not in self._sequences
        cache, left = sequence.cache, sequence.max_new_tokens - sequence.fed
        cache.reserve(cache.size + left)
        if is_new:
            self._sequences[index] = sequence
            self._token[index] = sequence.token
            self._fed[index] = 0
            self._sampling[:, index] = torch.tensor(
                [sequence.sampling.temperature, sequence.sampling.top_p], dtype=torch.float64
            )
            self._uniform[index, : sequence.max_new_tokens] = sequence.uniform.to(
                self._uniform.device
            )
        self._table.admit(index, cache, alive=True, max_new_tokens=left)
        if self._counters is not None:
            fed, alive = self._counters
            fed[index], alive[index] = 0 if is_new else fed[index], 1
        self._copied = None  # the copy under way may be of the index's last sequence

    def release(self, index: int) -> None:
        self._table.deactivate(index)
        if self._counters is not None:
            self._counters[1][index] = 0
        self._sequences.pop(index, None)

    def clear(self) -> None:
        """Remove all sequences."""
        for index in list(self._sequences):
            self.release(index)

    def step(self) -> torch.cuda.Event:
        self._counters = None
        self._graph.replay()
        self._launched += 1
        return self.record_time()

    def ended(self) -> Sequence[int]:
        if self._launched % CHECK_EVERY:
            return []
        ended: list[int] = []
        if self._copied is not None:
            self._copied.synchronize()
            ended = [index for index in self._sequences if not self._alive_on_host[index]]
        self._alive_on_host.copy_(self._table.alive, non_blocking=True)
        self._copied = self.record_time()
        return ended

    def sync(self, index: int) -> tuple[int, bool]:
        if self._counters is None:  # of all sequences: often several are due after the same step
            all_fed, all_alive = torch.stack([self._fed, self._table.alive]).tolist()
            self._counters = all_fed, all_alive
        fed, alive = (numbers[index] for numbers in self._counters)
        sequence = self._sequences[index]
        if fed > sequence.fed:
            # Step k feeds what step k - 1 chose.
            sequence.cache.note_tokens(
                lambda: [sequence.token, *self.chosen(index, fed - 1)[0]][sequence.fed : fed]
            )
            sequence.cache.note_decoded(fed - sequence.fed)
        return fed, bool(alive)

    def chosen(self, index: int, count: int) -> tuple[list[int], list[float]]:
        return self._ids[index, :count].tolist(), self._nll[index, :count].tolist()

    def record_time(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        stop.synchronize()
        milliseconds: float = start.elapsed_time(stop)
        return milliseconds / 1000

    def _decode_one_token(self) -> None:
        """Feed every sequence's token and choose its next one: this is what the graph captures."""
        hidden = self._engine.forward(self._token, self._table)
        logits = self._engine.logits(hidden[:, 0])
        if self._sampled:
            uniform = self._uniform.gather(1, self._fed[:, None] + 1)[:, 0]
            token = sample_tokens(logits, self._sampling[0], self._sampling[1], uniform)
        else:
            token = logits.argmax(-1)
        self._ids.scatter_(1, self._fed[:, None], token[:, None])
        self._nll.scatter_(1, self._fed[:, None], token_nll(logits, token)[:, None])
        self._table.advance()
        self._fed += self._table.alive
        self._table.end((token[:, None] != self._stops).all(1))
        self._token.copy_(token[:, None])

    @torch.inference_mode()
    def _capture(self, decoder: Any, compiled: bool) -> torch.cuda.CUDAGraph:
        self._table.give_rows([layer.self_attn for layer in decoder.layers])
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with ExitStack() as stack:
            if compiled:
                call = compile_for_steps(decoder.layers)
                stack.enter_context(layers_called_by(call, decoder.layers))
            with torch.cuda.stream(side):
                for _ in range(2):  # no sequence is active yet: this only compiles and allocates
                    self._decode_one_token()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._decode_one_token()
        return graph
