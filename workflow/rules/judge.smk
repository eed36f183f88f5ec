# Of all runs of a dialogue: a job for each run would take longer to start than to judge. A paid
# answer is kept, so a job that is run again asks only for what is new.
rule judge:
    input:
        turns=turns_of_dialogue,
        metrics="<results>/metrics/{model}/{dataset}/{dialogue}/metrics.parquet",
        rubric=rubric,
        batch_record=batch_record,
    output:
        verdicts="<results>/judge/{judge}/{model}/{dataset}/{dialogue}/verdicts.parquet",
    log:
        "<logs>/judge/{judge}/{model}/{dataset}/{dialogue}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=judge_spec,
        history=judged_history,
    shell:
        'python "$SCRIPTS/judge.py" --turns {input.turns:q} --metrics {input.metrics:q} '
        "--history {params.history:q} "
        "--rubric {input.rubric:q} --name {wildcards.judge:q} --spec {params.spec:q} "
        '--run-time "$RESULTS/run_time.json" --batch-record {input.batch_record:q} '
        "--out {output.verdicts:q} > {log:q} 2>&1"


rule request_judge_batch:
    input:
        turns=turns_of_all_runs,
        metrics=of_dialogues("metrics", "metrics.parquet"),
        rubric=rubric,
    output:
        "<results>/judge_batches/{judge}.json",
    log:
        "<logs>/request_judge_batch/{judge}.log",
    # It waits for up to a day and computes nothing.
    localrule: True
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=judge_spec,
        settings=json.dumps(grid_settings(SETTINGS), sort_keys=True),
    shell:
        'python "$SCRIPTS/request_judge_batch.py" --settings {params.settings:q} --results "$RESULTS" '
        "--rubric {input.rubric:q} --name {wildcards.judge:q} --spec {params.spec:q} "
        '--run-time "$RESULTS/run_time.json" --out {output:q} > {log:q} 2>&1'


rule compare_replies:
    input:
        turns=turns_of_dialogue,
        rubric=rubric,
        batch_record=batch_record,
    output:
        "<results>/comparisons/{judge}/{model}/{dataset}/{dialogue}/comparisons.parquet",
    log:
        "<logs>/compare_replies/{judge}/{model}/{dataset}/{dialogue}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=judge_spec,
    shell:
        'python "$SCRIPTS/compare_replies.py" --turns {input.turns:q} '
        "--rubric {input.rubric:q} --name {wildcards.judge:q} "
        "--spec {params.spec:q} "
        '--run-time "$RESULTS/run_time.json" '
        "--batch-record {input.batch_record:q} --out {output:q} > {log:q} 2>&1"
