rule fetch_model:
    input:
        # Written when the workflow starts: what the configuration points to, with the content of
        # local files.
        configured="resources/sources/models/{model}.json",
    output:
        folder=directory("resources/models/{model}"),
        # The digests of all files in the folder: what depends on the model reruns when one of
        # them changes, not when the folder is copied.
        record="resources/provenance/models/{model}.json",
        source="resources/provenance/sources/models/{model}.json",
    log:
        "<logs>/fetch_model/{model}.log",
    benchmark:
        "<results>/benchmarks/fetch_model/{model}.tsv"
    wildcard_constraints:
        model=names_of_models(fine_tuned=False),
    conda:
        "../../envs/model.yaml"
    params:
        spec=model_spec,
    shell:
        'python "$SCRIPTS/fetch_model.py" --spec {params.spec:q} --out {output.folder:q} '
        "--record {output.record:q} --configured {input.configured:q} --source {output.source:q} "
        "> {log:q} 2>&1"


# A job of its own, for it takes no GPU, and once for all trainings on the same dialogues. `digest`
# is one of what these depend on.
rule extract_training_dialogues:
    input:
        base=base_folder,
        base_record=base_record,
        data=training_data,
        data_record=training_record,
    output:
        dialogues="resources/training_dialogues/{digest}.json",
        # Their digest, and how they were chosen: a training starts again when this changes.
        record="resources/provenance/training_dialogues/{digest}.json",
    log:
        "<logs>/extract_training_dialogues/{digest}.log",
    benchmark:
        "<results>/benchmarks/extract_training_dialogues/{digest}.tsv"
    wildcard_constraints:
        digest="|".join(TRAINED_ON.values()) or "(?!)",
    conda:
        "../../envs/model.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(60),
        mem_mb=by_attempt(8000),
    params:
        spec=training_dialogues_spec,
    shell:
        'python "$SCRIPTS/extract_training_dialogues.py" --spec {params.spec:q} '
        "--base {input.base:q} --data {input.data:q} --out {output.dialogues:q} "
        "--record {output.record:q} > {log:q} 2>&1"


# Its product is a model's folder as `fetch_model` makes it. A job that was killed goes on from its
# checkpoint, which is no output: Snakemake would remove it.
rule finetune_model:
    input:
        configured="resources/sources/models/{model}.json",
        base=base_folder,
        base_record=base_record,
        dialogues=training_dialogues,
        dialogues_record=training_dialogues_record,
    output:
        folder=directory("resources/models/{model}"),
        record="resources/provenance/models/{model}.json",
        source="resources/provenance/sources/models/{model}.json",
    log:
        "<logs>/finetune_model/{model}.log",
    benchmark:
        "<results>/benchmarks/finetune_model/{model}.tsv"
    wildcard_constraints:
        model=names_of_models(fine_tuned=True),
    conda:
        "../../envs/model.yaml"
    threads: training_threads
    resources:
        gpu=training_gpus,
        serial=one_on_a_scheduler,
        runtime=training_minutes,
        mem_mb=training_memory,
    params:
        spec=finetuning_spec,
        device=generation_device,
        checkpoints=checkpoints,
    shell:
        'python "$SCRIPTS/finetune_model.py" --spec {params.spec:q} --base {input.base:q} '
        '--run-time "$RESULTS/run_time.json" '
        "--dialogues {input.dialogues:q} --device {params.device:q} --threads {threads} "
        "--checkpoints {params.checkpoints:q} --out {output.folder:q} --record {output.record:q} "
        "--configured {input.configured:q} --source {output.source:q} > {log:q} 2>&1"
