# `source` is a digest of where the dataset comes from: configurations in which one name stands for
# different sources do not overwrite each other's files.
rule fetch_dataset:
    input:
        # Written when the workflow starts: what the configuration points to, with the content of
        # local files.
        configured="resources/sources/datasets/{dataset}/{source}.json",
    output:
        folder=directory("resources/datasets/{dataset}/{source}"),
        record="resources/provenance/datasets/{dataset}/{source}.json",
        source="resources/provenance/sources/datasets/{dataset}/{source}.json",
    log:
        "<logs>/fetch_dataset/{dataset}/{source}.log",
    conda:
        "../../envs/model.yaml"
    params:
        spec=dataset_spec,
    shell:
        'python "$SCRIPTS/fetch_dataset.py" --spec {params.spec:q} '
        "--out {output.folder:q} --record {output.record:q} --configured {input.configured:q} "
        "--source {output.source:q} > {log:q} 2>&1"


rule extract_dialogues:
    input:
        data=fetched_data,
        data_record=fetched_record,
        model=ancient("resources/models/{model}"),
        model_record="resources/provenance/models/{model}.json",
    output:
        pool="<results>/dialogues/{model}/{dataset}/pool.parquet",
        manifest="<results>/dialogues/{model}/{dataset}/manifest.json",
        # Used by the page, which needs no weights.
        tokenizer=directory("<results>/dialogues/{model}/{dataset}/tokenizer"),
    log:
        "<logs>/extract_dialogues/{model}/{dataset}.log",
    benchmark:
        "<results>/benchmarks/extract_dialogues/{model}/{dataset}.tsv"
    wildcard_constraints:
        model=names_of_models(fine_tuned=False),
    conda:
        "../../envs/model.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(60),
        mem_mb=by_attempt(8000),
        # Said in the log and the manifest; a change of it extracts nothing again.
        reach=extraction_reach,
    params:
        spec=selection_spec,
    shell:
        'python "$SCRIPTS/extract_dialogues.py" --data {input.data:q} '
        "--model {input.model:q} --spec {params.spec:q} --reach {resources.reach:q} "
        "--pool {output.pool:q} --manifest {output.manifest:q} --tokenizer {output.tokenizer:q} "
        "> {log:q} 2>&1"


# A fine-tuned model has its base's tokenizer and chat template, so its dialogues are the base's. The
# files of these are `ancient`, for this runs again when an extraction would: when the selection, the
# data or the model change.
rule copy_dialogues:
    input:
        base=base_pool,
        base_manifest=base_manifest,
        base_tokenizer=base_tokenizer,
        data_record=fetched_record,
        model=ancient("resources/models/{model}"),
        model_record="resources/provenance/models/{model}.json",
    output:
        pool="<results>/dialogues/{model}/{dataset}/pool.parquet",
        manifest="<results>/dialogues/{model}/{dataset}/manifest.json",
        tokenizer=directory("<results>/dialogues/{model}/{dataset}/tokenizer"),
    log:
        "<logs>/copy_dialogues/{model}/{dataset}.log",
    benchmark:
        "<results>/benchmarks/copy_dialogues/{model}/{dataset}.tsv"
    wildcard_constraints:
        model=names_of_models(fine_tuned=True),
    conda:
        "../../envs/model.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(10),
        mem_mb=by_attempt(4000),
        reach=extraction_reach,
    params:
        spec=selection_spec,
        code=stage_digest("copy_dialogues"),
    shell:
        'python "$SCRIPTS/copy_dialogues.py" --base {input.base:q} '
        "--base-manifest {input.base_manifest:q} --base-tokenizer {input.base_tokenizer:q} "
        "--data-record {input.data_record:q} --model {input.model:q} --spec {params.spec:q} "
        "--reach {resources.reach:q} --pool {output.pool:q} --manifest {output.manifest:q} "
        "--tokenizer {output.tokenizer:q} > {log:q} 2>&1"


rule lengths:
    input:
        "<results>/dialogues/{model}/{dataset}/manifest.json",
    output:
        report(
            "<results>/figures/lengths/{model}/{dataset}.svg",
            caption="../report/lengths.rst",
            category="Dialogues",
            labels={
                "item": "figure lengths, {model}, {dataset}",
                "shows": "Tokens of the conversations that were read, and of those kept.",
            },
        ),
    log:
        "<logs>/lengths/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(10),
    params:
        code=stage_digest("lengths"),
    shell:
        'python "$SCRIPTS/lengths.py" --manifest {input:q} --title {wildcards.dataset:q} '
        "--out {output:q} > {log:q} 2>&1"
