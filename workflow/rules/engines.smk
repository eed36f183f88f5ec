# `snakemake results/probes/smollm2-135m.jsonl` makes what other engines can be checked with.
rule probe_set:
    input:
        model=ancient("resources/models/{model}"),
        model_record="resources/provenance/models/{model}.json",
        dialogues=fixed(workflow_file("resources/dialogues/own.jsonl")),
    output:
        "<results>/probes/{model}.jsonl",
    log:
        "<logs>/probe_set/{model}.log",
    benchmark:
        "<results>/benchmarks/probe_set/{model}.tsv"
    conda:
        "../../envs/model.yaml"
    threads: 2
    params:
        code=stage_digest("make_probe_set"),
    shell:
        'python "$SCRIPTS/make_probe_set.py" --model {input.model:q} '
        "--dialogues {input.dialogues:q} --threads {threads} --out {output:q} > {log:q} 2>&1"
