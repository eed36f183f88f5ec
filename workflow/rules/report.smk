rule aggregate:
    input:
        artifacts("generate", "turns.parquet"),
        artifacts("generate", "evictions.parquet"),
        artifacts("metrics", "metrics.parquet"),
        verdicts,
    output:
        turns="results/tables/turns.parquet",
        policies="results/tables/policies.parquet",
        contrasts="results/tables/contrasts.parquet",
        verdicts="results/tables/verdicts.parquet",
        evictions="results/tables/evictions.parquet",
    log:
        "logs/aggregate.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        settings=json.dumps(table_settings(SETTINGS), sort_keys=True),
        code=stage_fingerprint("aggregate"),
    shell:
        "python workflow/scripts/aggregate.py --settings {params.settings:q} --results results "
        "--out results/tables > {log} 2>&1"


rule figures:
    input:
        rules.aggregate.output,
    output:
        report(
            multiext("results/figures/excess", ".svg"),
            caption="../report/excess.rst",
            category="Quality",
        ),
        report(
            multiext("results/figures/cache_size", ".svg"),
            caption="../report/cache_size.rst",
            category="Cache",
        ),
        report(
            multiext("results/figures/retention", ".svg"),
            caption="../report/retention.rst",
            category="Cache",
        ),
        report(
            multiext("results/figures/by_turn", ".svg"),
            caption="../report/by_turn.rst",
            category="Quality",
        ),
    log:
        "logs/figures.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=stage_fingerprint("report"),
    shell:
        "python workflow/scripts/figures.py --tables results/tables --out results/figures "
        "> {log} 2>&1"


rule report:
    input:
        tables=rules.aggregate.output,
        figures=rules.figures.output,
    output:
        report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
    log:
        "logs/report.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        settings=json.dumps(report_settings(SETTINGS), sort_keys=True),
        code=stage_fingerprint("report"),
    shell:
        "python workflow/scripts/report.py --settings {params.settings:q} --results results "
        "--out {output} > {log} 2>&1"
