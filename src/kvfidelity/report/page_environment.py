"""The templates of the page: how they write numbers, and what they may call."""

from __future__ import annotations

from pathlib import Path

import jinja2

from kvfidelity.report.formatting import (
    count,
    day,
    decimal,
    depth_name,
    extent,
    interval,
    interval_of,
    megabytes,
    moment,
    p_value,
    percent,
    percent_range,
    perplexity,
    rounded,
    signed,
    whole,
)
from kvfidelity.report.page_rows import cell_key, claim_cells, contrast_cells
from kvfidelity.report.paper_tables import cell_name, claim_question

#: Where templates, style and script of the page lie.
TEMPLATES = Path(__file__).parent / "templates"


def page_environment() -> jinja2.Environment:
    """A template that names what it is not given is a fault, and every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "interval": interval,
        "interval_of": interval_of,
        "p": p_value,
        "percent": percent,
        "span": percent_range,
        "extent": extent,
        "decimal": decimal,
        "rounded": rounded,
        "whole": whole,
        "count_of": count,
        "megabytes": megabytes,
        "perplexity": perplexity,
        "moment": moment,
        "day": day,
        "depth_name": depth_name,
        "claim_question": claim_question,
        "cell_key": cell_key,
        "claim_cells": claim_cells,
        "contrast_cells": contrast_cells,
    }
    environment.globals |= {"cell_name": cell_name}
    return environment
