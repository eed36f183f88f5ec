rule judge:
    input:
        turns=f"<results>/generate/{RUN}/turns.parquet",
        metrics=f"<results>/metrics/{RUN}/metrics.parquet",
        baseline=baseline_history,
        rubric=rubric,
        batch_record=batch_record,
    output:
        verdicts=f"<results>/judge/{{judge}}/{RUN}/verdicts.parquet",
    log:
        f"<logs>/judge/{{judge}}/{RUN}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        limits=judge_request_limits,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=judge_spec,
    shell:
        'python "$SCRIPTS/judge.py" --turns {input.turns:q} --metrics {input.metrics:q} '
        "--baseline {input.baseline:q} "
        "--rubric {input.rubric:q} --name {wildcards.judge:q} --spec {params.spec:q} "
        "--limits {resources.limits:q} --store {resources.store:q} --batch-record {input.batch_record:q} "
        "--out {output.verdicts:q} > {log:q} 2>&1"


rule request_judge_batch:
    input:
        turns=artifacts("generate", "turns.parquet"),
        metrics=artifacts("metrics", "metrics.parquet"),
        rubric=rubric,
    output:
        "<results>/judge_batches/{judge}.json",
    log:
        "<logs>/request_judge_batch/{judge}.log",
    # It waits for up to a day and computes nothing.
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    resources:
        limits=judge_request_limits,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=judge_spec,
        settings=json.dumps(grid_settings(SETTINGS), sort_keys=True),
    shell:
        'python "$SCRIPTS/request_judge_batch.py" --settings {params.settings:q} --results "$RESULTS" '
        "--rubric {input.rubric:q} --name {wildcards.judge:q} --spec {params.spec:q} "
        "--limits {resources.limits:q} --store {resources.store:q} --out {output:q} > {log:q} 2>&1"


rule compare_replies:
    input:
        turns=f"<results>/generate/{RUN}/turns.parquet",
        baseline=baseline_turns,
        rubric=rubric,
        batch_record=batch_record,
    output:
        f"<results>/comparisons/{{judge}}/{RUN}/comparisons.parquet",
    log:
        f"<logs>/compare_replies/{{judge}}/{RUN}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        limits=judge_request_limits,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=judge_spec,
    shell:
        'python "$SCRIPTS/compare_replies.py" --turns {input.turns:q} '
        "--baseline {input.baseline:q} --rubric {input.rubric:q} --name {wildcards.judge:q} "
        "--spec {params.spec:q} --limits {resources.limits:q} --store {resources.store:q} "
        "--batch-record {input.batch_record:q} --out {output:q} > {log:q} 2>&1"
