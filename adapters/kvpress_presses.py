# /// script
# requires-python = ">=3.11"
# dependencies = ["kvpress>=0.5", "torch", "transformers<5.3"]
# ///
"""Answers a probe set with kvpress: a press prunes the cache while a prompt is fed.

    python adapters/kvpress_presses.py MODEL probes.jsonl answers.jsonl --feed pipeline

A ScorerPress whose scores are 1 for the tokens of the keep set stands for any press. `--rerotate`
wraps it in KeyRerotationPress. `--feed pipeline` continues as KVPressTextGenerationPipeline does,
with its position_ids; `--feed generate` continues as `model.generate` does, without position_ids.
A press acts at the end of a prompt, so probes with repeated evictions are not answered.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from kvpress import KeyRerotationPress, ScorerPress
from transformers import AutoModelForCausalLM, DynamicCache


@dataclass
class KeepSetPress(ScorerPress):
    """Scores the tokens of a keep set with 1, the others with 0."""

    keep: list = field(default_factory=list)

    def score(self, module, hidden_states, keys, values, attentions, kwargs) -> torch.Tensor:
        scores = torch.zeros(keys.shape[:3])
        for head in range(keys.shape[1]):
            for start, stop in self.keep[head if len(self.keep) > 1 else 0]:
                scores[:, head, start:stop] = 1
        return scores


@torch.inference_mode()
def answer(model: torch.nn.Module, probe: dict, rerotate: bool, feed: str) -> list[float]:
    """Log-probability of each scored token, in nats."""
    tokens, (start, stop) = torch.tensor([probe["tokens"]]), probe["scored"]
    cache, prompt = DynamicCache(), tokens[:, : start - 1]
    if probe["evictions"]:
        [eviction] = probe["evictions"]
        kept = sum(b - a for a, b in eviction["keep"][0])
        # A little less than the share that goes: kvpress rounds the number of kept tokens down.
        ratio = 1 - (kept + 0.5) / prompt.shape[1]
        press = KeepSetPress(compression_ratio=ratio, keep=eviction["keep"])
        press = KeyRerotationPress(press) if rerotate else press
        with press(model):
            model.model(input_ids=prompt, past_key_values=cache)
        assert cache.get_seq_length() == kept, (cache.get_seq_length(), kept)
    else:
        model.model(input_ids=prompt, past_key_values=cache)
    # KVPressTextGenerationPipeline._forward: the context's length, or the cache's if re-rotated.
    first = cache.get_seq_length() if rerotate else prompt.shape[1]
    part = tokens[:, start - 1 : stop - 1]
    positions = torch.arange(first, first + part.shape[1])[None] if feed == "pipeline" else None
    logits = model(input_ids=part, past_key_values=cache, position_ids=positions).logits[0]
    targets = tokens[0, start:stop, None]
    return logits.float().log_softmax(-1).gather(-1, targets)[:, 0].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("probes", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--rerotate", action="store_true")
    parser.add_argument("--feed", choices=("pipeline", "generate"), default="pipeline")
    parser.add_argument("--longest", type=int, default=10**9, help="skip probes of more tokens")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    _, *probes = map(json.loads, options.probes.read_text(encoding="utf-8").splitlines())
    with options.answers.open("w", encoding="utf-8") as file:
        for probe in probes:
            if len(probe["tokens"]) > options.longest or len(probe["evictions"]) > 1:
                continue
            logprobs = answer(model, probe, options.rerotate, options.feed)
            file.write(json.dumps({"probe": probe["probe"], "logprob": logprobs}) + "\n")


if __name__ == "__main__":
    main()
