rule judge:
    input:
        turns=f"results/generate/{RUN}/turns.parquet",
        metrics=f"results/metrics/{RUN}/metrics.parquet",
        rubric=rubric,
        asked=asked,
    output:
        verdicts=f"results/judge/{{judge}}/{RUN}/verdicts.parquet",
    log:
        f"logs/judge/{{judge}}/{RUN}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        pace=judge_pace,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=judge_spec,
    shell:
        "python workflow/scripts/judge.py --turns {input.turns} --metrics {input.metrics} "
        "--rubric {input.rubric} --name {wildcards.judge} --spec {params.spec:q} "
        "--pace {resources.pace:q} --store {resources.store:q} --asked {input.asked} "
        "--out {output.verdicts} > {log} 2>&1"


rule ask_in_batch:
    input:
        turns=artifacts("generate", "turns.parquet"),
        metrics=artifacts("metrics", "metrics.parquet"),
        rubric=rubric,
    output:
        "results/asked/{judge}.json",
    log:
        "logs/ask_in_batch/{judge}.log",
    # It waits for up to a day and computes nothing.
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    resources:
        pace=judge_pace,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=judge_spec,
        settings=json.dumps(grid_settings(SETTINGS), sort_keys=True),
    shell:
        "python workflow/scripts/ask_in_batch.py --settings {params.settings:q} --results results "
        "--rubric {input.rubric} --name {wildcards.judge} --spec {params.spec:q} "
        "--pace {resources.pace:q} --store {resources.store:q} --out {output} > {log} 2>&1"


rule compare_replies:
    input:
        turns=f"results/generate/{RUN}/turns.parquet",
        never_evicted=turns_of_never_evicted,
        rubric=rubric,
        asked=asked,
    output:
        f"results/comparisons/{{judge}}/{RUN}/comparisons.parquet",
    log:
        f"logs/compare_replies/{{judge}}/{RUN}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        pace=judge_pace,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=judge_spec,
    shell:
        "python workflow/scripts/compare_replies.py --turns {input.turns} "
        "--never-evicted {input.never_evicted} --rubric {input.rubric} --name {wildcards.judge} "
        "--spec {params.spec:q} --pace {resources.pace:q} --store {resources.store:q} "
        "--asked {input.asked} --out {output} > {log} 2>&1"
