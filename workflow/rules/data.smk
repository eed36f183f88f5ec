rule fetch_dataset:
    output:
        directory("resources/datasets/{dataset}"),
    log:
        "logs/fetch_dataset/{dataset}.log",
    conda:
        "../../envs/model.yaml"
    params:
        spec=dataset_spec,
    shell:
        "python workflow/scripts/fetch_dataset.py --spec {params.spec:q} --out {output} > {log} 2>&1"


rule extract_dialogues:
    input:
        data="resources/datasets/{dataset}",
        tokenizer="resources/models/{model}",
    output:
        pool="results/dialogues/{model}/{dataset}/pool.parquet",
        manifest="results/dialogues/{model}/{dataset}/manifest.json",
    log:
        "logs/extract_dialogues/{model}/{dataset}.log",
    benchmark:
        "results/benchmarks/extract_dialogues/{model}/{dataset}.tsv"
    conda:
        "../../envs/model.yaml"
    params:
        spec=selection_spec,
    shell:
        "python workflow/scripts/extract_dialogues.py --data {input.data} "
        "--tokenizer {input.tokenizer} --spec {params.spec:q} --pool {output.pool} "
        "--manifest {output.manifest} > {log} 2>&1"


rule lengths:
    input:
        "results/dialogues/{model}/{dataset}/manifest.json",
    output:
        report(
            "results/figures/lengths/{model}/{dataset}.svg",
            caption="../report/lengths.rst",
            category="Dialogues",
        ),
    log:
        "logs/lengths/{model}/{dataset}.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        code=stage_fingerprint("lengths"),
    shell:
        "python workflow/scripts/lengths.py --manifest {input} --title {wildcards.dataset:q} "
        "--out {output} > {log} 2>&1"
