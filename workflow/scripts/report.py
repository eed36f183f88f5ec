"""Write the report page, and the table of the jobs' seconds and memory."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads)
    parser.add_argument("--results", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    from kvfidelity.analysis.jobs import jobs_table
    from kvfidelity.analysis.table_files import write_table
    from kvfidelity.atomic_files import write_text
    from kvfidelity.pipeline.invocation import read_invocation
    from kvfidelity.pipeline.setting_schemas import policy_schemas
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.report.page import render
    from kvfidelity.report.page_tables import read_tables

    folder = options.results / "tables"
    tables = read_tables(folder)
    jobs = jobs_table(options.results, tables["turns"]["run"].unique())
    write_table(folder, "jobs", jobs, notes_of("report"))
    tables["jobs"] = jobs
    kinds = {kind: schema["description"] for kind, schema in policy_schemas().items()}
    started = read_invocation(options.results)
    write_text(options.out, render(options.settings, tables, options.results, started, kinds))


if __name__ == "__main__":
    main_guard(main)
