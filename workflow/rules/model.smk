rule fetch_model:
    output:
        folder=directory("resources/models/{model}"),
        # The digests of all files in the folder: what depends on the model reruns when one of
        # them changes, not when the folder is copied.
        record="resources/provenance/models/{model}.json",
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        "results/benchmarks/fetch_model/{model}.tsv"
    conda:
        "../../envs/model.yaml"
    params:
        spec=model_spec,
    shell:
        "python workflow/scripts/fetch_model.py --spec {params.spec:q} --out {output.folder} "
        "--record {output.record} > {log} 2>&1"
