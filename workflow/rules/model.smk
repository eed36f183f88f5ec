rule fetch_model:
    output:
        directory("resources/models/{model}"),
    log:
        "logs/fetch_model/{model}.log",
    benchmark:
        "results/benchmarks/fetch_model/{model}.tsv"
    conda:
        "../../envs/model.yaml"
    params:
        spec=model_spec,
    shell:
        "python workflow/scripts/fetch_model.py --spec {params.spec:q} --out {output} > {log} 2>&1"
