"""Names that configurations and tables had before; an error gives the new name."""

from __future__ import annotations

#: Sections and keys of the configuration: (section, old) -> new.
RENAMED_KEYS: dict[tuple[str, str], str] = {
    ("session", "lanes"): "batch_size",
    ("session.recall", "planted_per_depth"): "needles_per_depth",
    ("judge", "key_env"): "api_key_env",
    ("reliability", "words"): "max_words",
    ("reliability", "context_words"): "max_context_words",
}
#: Values that a key may not have any more: old -> new.
RENAMED_VALUES: dict[str, str] = {"offline": "formula"}
#: Columns of the tables: old -> new.
RENAMED_COLUMNS: dict[str, str] = {
    "runs": "kept_spans",
    "full_nll": "baseline_nll",
    "kl_full": "kl_baseline",
    "reply_nll_full": "reply_nll_baseline",
    "recalled_full": "recalled_baseline",
    "lanes": "concurrency",
    "lanes_tokens_per_s": "batch_tokens_per_s",
    "told_in_turn": "evidence_turn",
    "told_cached_share": "evidence_retained_share",
    "swayed": "order_decided",
    "says": "statement",
    "verdict": "decision",
    "why": "reason",
    "token_runs": "token_spans",
    "what": "judged",
}
