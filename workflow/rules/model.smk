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
    conda:
        "../../envs/model.yaml"
    params:
        spec=model_spec,
    shell:
        'python "$SCRIPTS/fetch_model.py" --spec {params.spec:q} --out {output.folder:q} '
        "--record {output.record:q} --configured {input.configured:q} --source {output.source:q} "
        "> {log:q} 2>&1"
