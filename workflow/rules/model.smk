rule fetch_model:
    output:
        directory("resources/models/{model}"),
    log:
        "logs/fetch_model/{model}.log",
    params:
        spec=model_spec,
    conda:
        "../../envs/model.yaml"
    shell:
        "python workflow/scripts/fetch_model.py --spec {params.spec:q} --out {output} > {log} 2>&1"
