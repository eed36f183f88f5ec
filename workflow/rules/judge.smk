rule judge:
    input:
        turns=f"results/generate/{RUN}/turns.parquet",
        metrics=f"results/metrics/{RUN}/metrics.parquet",
        rubric=rubric,
    output:
        verdicts=f"results/judge/{{judge}}/{RUN}/verdicts.parquet",
    log:
        f"logs/judge/{{judge}}/{RUN}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=judge_spec,
    shell:
        "python workflow/scripts/judge.py --turns {input.turns} --metrics {input.metrics} "
        "--rubric {input.rubric} --name {wildcards.judge} --spec {params.spec:q} "
        "--store results/verdicts --out {output.verdicts} > {log} 2>&1"
