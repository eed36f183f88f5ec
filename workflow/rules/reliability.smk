rule plant:
    input:
        "results/dialogues/{model}/{dataset}/pool.parquet",
    output:
        "results/planted/{model}/{dataset}/texts.parquet",
    log:
        "logs/plant/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(10),
    params:
        spec=as_parameters(SETTINGS["reliability"], "plant"),
    shell:
        "python workflow/scripts/plant.py --pool {input} --spec {params.spec:q} --out {output} "
        "> {log} 2>&1"


rule likelihood:
    input:
        model=ancient("resources/models/{model}"),
        model_record="resources/provenance/models/{model}.json",
        texts="results/planted/{model}/{dataset}/texts.parquet",
    output:
        "results/planted/{model}/{dataset}/likelihood.parquet",
    log:
        "logs/likelihood/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/likelihood/{model}/{dataset}.tsv"
    conda:
        "../../envs/model.yaml"
    threads: generate_threads
    resources:
        gpu=model_gpus,
        runtime=likelihood_minutes,
        mem_mb=likelihood_memory,
        worker_gpus=str(gpus()),
        lanes=str(SETTINGS["session"]["lanes"]),
        # Nothing here is shared, but a worker that is for something else would be replaced.
        prefix_memory=lookup("session/prefix_memory", within=SETTINGS),
        prefix_disk=lookup("session/prefix_disk", within=SETTINGS),
    params:
        dtype=lookup("models/{model}/dtype", within=SETTINGS),
        device=lookup("models/{model}/device", within=SETTINGS),
        code=stage_fingerprint("generate"),
    shell:
        "python workflow/scripts/likelihood.py --model-dir {input.model} --dtype {params.dtype} "
        "--device {params.device} --fingerprint {params.code} "
        "--prefix-memory {resources.prefix_memory} --threads {threads} --texts {input.texts} "
        "--prefix-disk {resources.prefix_disk} "
        "--gpus {resources.worker_gpus} --lanes {resources.lanes} --out {output} 2>&1 | tee {log}"


rule trial:
    input:
        texts="results/planted/{model}/{dataset}/texts.parquet",
        likelihood=planted_likelihood,
        rubric=rubric,
    output:
        "results/reliability/{judge}/{model}/{dataset}/trial.parquet",
    log:
        "logs/trial/{judge}/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        pace=judge_pace,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=trial_spec,
    shell:
        "python workflow/scripts/trial.py --texts {input.texts} --likelihood {input.likelihood} "
        "--rubric {input.rubric} --name {wildcards.judge} --spec {params.spec:q} "
        "--pace {resources.pace:q} --store {resources.store:q} --out {output} > {log} 2>&1"


rule compare_planted:
    input:
        texts="results/planted/{model}/{dataset}/texts.parquet",
        rubric=rubric,
    output:
        "results/reliability/{judge}/{model}/{dataset}/pairs.parquet",
    log:
        "logs/compare_planted/{judge}/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        pace=judge_pace,
        store=lookup("verdict_store", within=SETTINGS),
    params:
        spec=trial_spec,
    shell:
        "python workflow/scripts/compare_replies.py --texts {input.texts} "
        "--rubric {input.rubric} --name {wildcards.judge} --spec {params.spec:q} "
        "--pace {resources.pace:q} --store {resources.store:q} --out {output} > {log} 2>&1"


rule appraise:
    input:
        verdicts="results/tables/verdicts.parquet",
        trials=trials(False, "trial.parquet"),
        pairs=trials(True, "pairs.parquet"),
        comparisons=comparisons(),
    output:
        multiext("results/tables/reliability", ".parquet", ".csv"),
        multiext("results/tables/comparisons", ".parquet", ".csv"),
        multiext("results/tables/costs", ".parquet", ".csv"),
    log:
        "logs/appraise.log",
    benchmark:
        "results/benchmarks/appraise.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
    params:
        settings=json.dumps(grid_settings(SETTINGS), sort_keys=True),
        code=stage_fingerprint("appraise"),
    shell:
        "python workflow/scripts/appraise.py --settings {params.settings:q} --results results "
        "--trials {input.trials} --pairs {input.pairs} > {log} 2>&1"
