FIGURES = [
    "excess",
    "heat_map",
    "by_turn",
    "recall",
    "predictor_ranking",
    "distortion",
    "through_window",
    "cache_size",
    "retention",
    "inside_turns",
    "pareto",
    "latency",
]


rule aggregate:
    input:
        artifacts("generate", "turns.parquet"),
        artifacts("generate", "evictions.parquet"),
        artifacts("generate", "recall.parquet"),
        artifacts("metrics", "metrics.parquet"),
        verdicts,
    output:
        turns="results/tables/turns.parquet",
        verdicts="results/tables/verdicts.parquet",
        evictions="results/tables/evictions.parquet",
        summaries=multiext("results/tables/dialogues", ".parquet", ".csv"),
        policies=multiext("results/tables/policies", ".parquet", ".csv"),
        contrasts=multiext("results/tables/contrasts", ".parquet", ".csv"),
        predictors=multiext("results/tables/predictors", ".parquet", ".csv"),
        window=multiext("results/tables/window", ".parquet", ".csv"),
        environments=multiext("results/tables/environments", ".parquet", ".csv"),
        recall="results/tables/recall.parquet",
        recall_by_depth=multiext("results/tables/recall_by_depth", ".parquet", ".csv"),
        not_finite=multiext("results/tables/not_finite", ".parquet", ".csv"),
    log:
        "logs/aggregate.log",
    benchmark:
        "results/benchmarks/aggregate.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=table_parameters,
        code=stage_digest("aggregate"),
    shell:
        "python workflow/scripts/aggregate.py --settings {params.settings:q} --results results "
        "--out results/tables > {log} 2>&1"


rule claims:
    input:
        tables=rules.aggregate.output,
        claims="config/claims.yaml",
    output:
        verdicts=report(
            multiext("results/tables/claims", ".csv"),
            caption="../report/claims.rst",
            category="Claims",
        ),
        table="results/tables/claims.parquet",
        papers=multiext("results/tables/claims", ".md", ".tex"),
        policies=multiext("results/tables/policies", ".md", ".tex"),
        contrasts=multiext("results/tables/contrasts", ".md", ".tex"),
        recall_by_depth=multiext("results/tables/recall_by_depth", ".md", ".tex"),
    log:
        "logs/claims.log",
    benchmark:
        "results/benchmarks/claims.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=json.dumps(SETTINGS["report"], sort_keys=True),
        code=stage_digest("claims"),
    shell:
        "python workflow/scripts/claims.py --settings {params.settings:q} --tables results/tables "
        "--claims {input.claims} > {log} 2>&1"


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
            multiext("results/figures/heat_map", ".svg"),
            caption="../report/heat_map.rst",
            category="Quality",
        ),
        report(
            multiext("results/figures/by_turn", ".svg"),
            caption="../report/by_turn.rst",
            category="Quality",
        ),
        report(
            multiext("results/figures/recall", ".svg"),
            caption="../report/recall.rst",
            category="Recall",
        ),
        report(
            multiext("results/figures/predictor_ranking", ".svg"),
            caption="../report/predictor_ranking.rst",
            category="Positions",
        ),
        report(
            multiext("results/figures/distortion", ".svg"),
            caption="../report/distortion.rst",
            category="Positions",
        ),
        report(
            multiext("results/figures/through_window", ".svg"),
            caption="../report/through_window.rst",
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
            multiext("results/figures/inside_turns", ".svg"),
            caption="../report/inside_turns.rst",
            category="Cache",
        ),
        report(
            multiext("results/figures/pareto", ".svg"),
            caption="../report/pareto.rst",
            category="Cost",
        ),
        report(
            multiext("results/figures/latency", ".svg"),
            caption="../report/latency.rst",
            category="Cost",
        ),
        expand("results/figures/{name}.{ending}", name=FIGURES, ending=["png", "html"]),
    log:
        "logs/figures.log",
    benchmark:
        "results/benchmarks/figures.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        code=stage_digest("report"),
    shell:
        "python workflow/scripts/figures.py --tables results/tables --out results/figures "
        "> {log} 2>&1"


rule report:
    input:
        tables=rules.aggregate.output,
        judges=rules.judge_reliability.output,
        claims=rules.claims.output,
        figures=rules.figures.output,
        tokenizers=tokenizers(),
    output:
        page=report(
            "results/report.html",
            caption="../report/report.rst",
            category="Report",
        ),
        # By the last job, so that the others' benchmarks are there.
        jobs=multiext("results/tables/jobs", ".parquet", ".csv"),
    log:
        "logs/report.log",
    benchmark:
        "results/benchmarks/report.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=json.dumps(report_settings(SETTINGS), sort_keys=True),
        code=stage_digest("report"),
    shell:
        "python workflow/scripts/report.py --settings {params.settings:q} --results results "
        "--out {output.page} > {log} 2>&1"
