"""What others report, and what of it can be compared with the published tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from kvfidelity.findings.published import MODEL_NAMES, PublishedRun, of_question
from kvfidelity.findings.verdicts import NOT_MEASURED, claim_rows, verdict
from kvfidelity.findings.wording import CORRECTED, number
from kvfidelity.report.paper_tables import markdown

HEAD = ["source", "what it reports", "what these tables say", "what cannot be compared, and why"]


def peers(runs: Sequence[PublishedRun]) -> str:
    """A table of sources. What the tables say is computed from them."""
    rows = [
        [
            "[arXiv 2511.04686](https://arxiv.org/abs/2511.04686), the paper",
            "Attention-ranked eviction at 99% ruins replies; a kept beginning of 2,000 tokens "
            "does not.",
            f"C2 {_claims(runs, 'C2')}. C4a {_claims(runs, 'C4a')}. With corrected positions (P1) "
            f"{_claims(runs, 'P1')}.",
            "Its model, 8B parameters, was not run, and its judge is a language model.",
        ],
        [
            "[StreamingLLM](https://arxiv.org/abs/2309.17453)",
            "Sinks and a recent window keep a stream's perplexity; positions are those within the "
            "cache, which is `rerotated` here.",
            f"streaming_llm at 2,000 tokens: {_streaming(runs)}.",
            "It has no conversation with facts to be recalled, and its text is one long stream.",
        ],
        [
            "[kvpress](https://github.com/NVIDIA/kvpress)",
            "Presses ranked by RULER at 4k tokens after one compression of a context; keys keep "
            "their rotation, or `KeyRerotationPress` re-rotates them, so positions are corrected "
            "in both.",
            f"The order by margin lost at 2,000 tokens, the least first: {_order(runs)}.",
            "One compression of a prompt of models of 8B, not turns; RULER's tasks, not planted "
            "facts in chats; a share of the context, not a number of tokens. Stale positions do "
            "not occur there.",
        ],
        [
            "[SCBench](https://arxiv.org/abs/2412.10319)",
            "Methods with less than O(n) memory struggle in later turns of a shared context; "
            "those that keep all of the cache do not.",
            f"Sinks and a recent window forget the beginning (P7) {_claims(runs, 'P7')}; a kept "
            f"beginning forgets the middle (P6) {_claims(runs, 'P6')}.",
            "Its models have 8B to 72B parameters, its tasks are retrieval over contexts of "
            "100,000 tokens and more.",
        ],
    ]
    return markdown(HEAD, rows)


def _claims(runs: Sequence[PublishedRun], claim: str) -> str:
    models: Mapping[str, str] = {run.model: MODEL_NAMES.get(run.model, run.model) for run in runs}
    found = {
        model: verdict(rows.filter(claim=claim))
        for model in models
        if (rows := claim_rows(runs, model)).height
    }
    tested = {model: text for model, text in found.items() if text != NOT_MEASURED}
    if not tested:
        return f"is {NOT_MEASURED}"
    return "; ".join(f"for {models[model]} is {text}" for model, text in tested.items())


def _streaming(runs: Sequence[PublishedRun]) -> str:
    parts = []
    for run in of_question(list(runs), "budgets", "policies"):
        rows = run.tables["policies"].filter(policy="streaming_llm", threshold="2000tok")
        by_mode = {row["positions"]: row for row in rows.to_dicts()}
        parts.append(
            f"{run.name} {number(by_mode.get(CORRECTED))} nats per token rerotated, "
            f"{number(by_mode.get('stale'))} stale"
        )
    return "; ".join(parts) or NOT_MEASURED


def _order(runs: Sequence[PublishedRun]) -> str:
    parts = []
    for run in of_question(list(runs), "budgets", "leaderboard"):
        rows = run.tables["leaderboard"].filter(positions=CORRECTED, threshold="2000tok")
        ordered = rows.filter(pl.col("margin_lost").is_not_null()).sort("margin_lost", "policy")
        parts.append(f"{run.name} {', '.join(ordered['policy'])}")
    return "; ".join(parts) or NOT_MEASURED
