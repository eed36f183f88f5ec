from kvfidelity.report.figure_registry import FIGURES
from kvfidelity.report.paper_tables import PAPER_TABLES


rule aggregate:
    input:
        # Made of all files of the runs, which are not listed: each of the outputs' records would
        # hold the list.
        of_dialogues("metrics", "metrics.parquet"),
        verdicts,
    output:
        tables_for_report("aggregate"),
    log:
        "<logs>/aggregate.log",
    benchmark:
        "<results>/benchmarks/aggregate.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=table_parameters,
        code=stage_digest("aggregate"),
    shell:
        'python "$SCRIPTS/aggregate.py" --settings {params.settings:q} --results "$RESULTS" '
        '--out "$RESULTS/tables" > {log:q} 2>&1'


rule claims:
    input:
        tables=rules.aggregate.output,
        claims=fixed(workflow_file(CLAIMS)),
    output:
        verdicts=report(
            multiext("<results>/tables/claims", ".csv"),
            caption="../report/claims.rst",
            category="Tables",
            labels={"item": "table claims", "shows": TABLE_ROWS["claims"]},
        ),
        table="<results>/tables/claims.parquet",
    log:
        "<logs>/claims.log",
    benchmark:
        "<results>/benchmarks/claims.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=json.dumps(SETTINGS["report"], sort_keys=True),
        code=stage_digest("claims"),
    shell:
        'python "$SCRIPTS/claims.py" --settings {params.settings:q} --tables "$RESULTS/tables" '
        "--claims {input.claims:q} > {log:q} 2>&1"


rule paper_tables:
    input:
        tables=rules.aggregate.output,
        claims=rules.claims.output.table,
    output:
        expand(
            "<results>/tables/{name}.{ending}", name=PAPER_TABLES, ending=["md", "tex"]
        ),
    log:
        "<logs>/paper_tables.log",
    benchmark:
        "<results>/benchmarks/paper_tables.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        code=stage_digest("paper_tables"),
    shell:
        'python "$SCRIPTS/paper_tables.py" --tables "$RESULTS/tables" > {log:q} 2>&1'


rule figures:
    input:
        rules.aggregate.output,
    output:
        *[figure_for_report(figure) for figure in FIGURES],
        expand(
            "<results>/figures/{name}.{ending}",
            name=[figure.name for figure in FIGURES],
            ending=["narrow.svg", "png", "html", "csv"],
        ),
    log:
        "<logs>/figures.log",
    benchmark:
        "<results>/benchmarks/figures.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        code=stage_digest("report"),
    shell:
        'python "$SCRIPTS/figures.py" --tables "$RESULTS/tables" --out "$RESULTS/figures" '
        "> {log:q} 2>&1"


rule report:
    input:
        tables=rules.aggregate.output,
        judges=rules.judge_reliability.output,
        claims=rules.claims.output,
        figures=rules.figures.output,
        tokenizers=tokenizers(),
    output:
        page=report(
            "<results>/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"item": "the page", "shows": "Everything below, in one file."},
        ),
        # By the last job, so that the others' benchmarks are there.
        jobs=tables_for_report("report"),
    log:
        "<logs>/report.log",
    benchmark:
        "<results>/benchmarks/report.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=json.dumps(report_settings(SETTINGS), sort_keys=True),
        code=stage_digest("report"),
    shell:
        'python "$SCRIPTS/report.py" --settings {params.settings:q} --results "$RESULTS" '
        "--out {output.page:q} > {log:q} 2>&1"
