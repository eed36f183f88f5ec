"""Tables of a run without a row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from kvfidelity.analysis.claims import evaluate_claims
from kvfidelity.analysis.columns import table_schema
from kvfidelity.analysis.tables import build_tables
from kvfidelity.records.artifacts import write_parquet
from kvfidelity.records.columns import EVICTIONS, METRICS, RUN_VERDICTS, TURNS
from kvfidelity.records.grid import dialogue_of, run_keys

SETTINGS: dict[str, Any] = {
    "models": {"none": {}},
    "datasets": {"none": {"count": 1}},
    "policies": {"baseline": {"kind": "baseline"}},
    "thresholds": {"none": {}},
    "grid": dict.fromkeys(("models", "datasets", "policies", "positions", "thresholds"), "all")
    | {"seeds": [0], "include": [], "exclude": []},
    "judging": ["none"],
    "report": {"confidence": 0.95, "resamples": 100, "seed": 0},
}
ARTIFACTS = {
    "generate": {"turns": TURNS, "evictions": EVICTIONS},
    "metrics": {"metrics": METRICS},
    "judge/none": {"verdicts": RUN_VERDICTS},
}


def empty_tables() -> dict[str, pl.DataFrame]:
    """All tables, as one run without a row gives them."""
    with tempfile.TemporaryDirectory() as name:
        results = Path(name)
        for key in run_keys(SETTINGS):
            for stage, schemas in ARTIFACTS.items():
                for kind, columns in schemas.items():
                    made_for = key if stage == "generate" else dialogue_of(key)
                    file = results / stage / made_for / f"{kind}.parquet"
                    write_parquet(pl.DataFrame(schema=columns), file, kind=kind)
        tables = build_tables(SETTINGS, results)
    claims = evaluate_claims([], tables, SETTINGS["report"])
    return tables | {"claims": claims, "jobs": pl.DataFrame(schema=table_schema("jobs"))}
