rule corrupt_replies:
    input:
        "<results>/dialogues/{model}/{dataset}/pool.parquet",
    output:
        "<results>/corruptions/{model}/{dataset}/corruptions.parquet",
    log:
        "<logs>/corrupt_replies/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(10),
    params:
        spec=as_parameters(SETTINGS["reliability"], "corrupt_replies"),
    shell:
        'python "$SCRIPTS/corrupt_replies.py" --pool {input:q} --spec {params.spec:q} --out {output:q} '
        "> {log:q} 2>&1"


rule score_corruptions:
    input:
        model=ancient("resources/models/{model}"),
        model_record="resources/provenance/models/{model}.json",
        texts="<results>/corruptions/{model}/{dataset}/corruptions.parquet",
    output:
        "<results>/corruptions/{model}/{dataset}/likelihood.parquet",
    log:
        "<logs>/score_corruptions/{model}/{dataset}.log",
    benchmark:
        "<results>/benchmarks/score_corruptions/{model}/{dataset}.tsv"
    priority: with_last_runs
    conda:
        "../../envs/model.yaml"
    threads: generate_threads
    resources:
        gpu=model_gpus,
        runtime=likelihood_minutes,
        mem_mb=likelihood_memory,
    params:
        dtype=lookup("models/{model}/dtype", within=SETTINGS),
        device=lookup("models/{model}/device", within=SETTINGS),
        code=stage_digest("generate"),
    shell:
        'python "$SCRIPTS/score_corruptions.py" --model-dir {input.model:q} --dtype {params.dtype:q} '
        "--device {params.device:q} --code-digest {params.code:q} "
        '--run-time "$RESULTS/run_time.json" --threads {threads} --texts {input.texts:q} '
        "--out {output:q} > {log:q} 2>&1"


rule test_judge:
    input:
        texts="<results>/corruptions/{model}/{dataset}/corruptions.parquet",
        likelihood=corruption_likelihoods,
        rubric=rubric,
    output:
        "<results>/reliability/{judge}/{model}/{dataset}/judge_test.parquet",
    log:
        "<logs>/test_judge/{judge}/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=judge_test_spec,
    shell:
        'python "$SCRIPTS/test_judge.py" --texts {input.texts:q} --likelihood {input.likelihood:q} '
        "--rubric {input.rubric:q} --name {wildcards.judge:q} --spec {params.spec:q} "
        '--run-time "$RESULTS/run_time.json" --out {output:q} > {log:q} 2>&1'


rule test_pairwise_judge:
    input:
        texts="<results>/corruptions/{model}/{dataset}/corruptions.parquet",
        rubric=rubric,
    output:
        "<results>/reliability/{judge}/{model}/{dataset}/pairs.parquet",
    log:
        "<logs>/test_pairwise_judge/{judge}/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        spec=judge_test_spec,
    shell:
        'python "$SCRIPTS/compare_replies.py" --texts {input.texts:q} '
        "--rubric {input.rubric:q} --name {wildcards.judge:q} --spec {params.spec:q} "
        '--run-time "$RESULTS/run_time.json" --out {output:q} > {log:q} 2>&1'


rule judge_reliability:
    input:
        turns="<results>/tables/turns.parquet",
        verdicts="<results>/tables/verdicts.parquet",
        judge_tests=judge_tests(False, "judge_test.parquet"),
        pairs=judge_tests(True, "pairs.parquet"),
        comparisons=comparisons,
    output:
        tables_for_report("judge_reliability"),
    log:
        "<logs>/judge_reliability.log",
    benchmark:
        "<results>/benchmarks/judge_reliability.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=json.dumps(grid_settings(SETTINGS), sort_keys=True),
        code=stage_digest("judge_reliability"),
    shell:
        'python "$SCRIPTS/judge_reliability.py" --settings {params.settings:q} --results "$RESULTS" '
        "--judge-tests {input.judge_tests:q} --pairs {input.pairs:q} > {log:q} 2>&1"
