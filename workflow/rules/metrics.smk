# Of all runs of a dialogue: a job for each run would take longer to start than to measure.
rule measure:
    input:
        turns=turns_of_dialogue,
    output:
        metrics="<results>/metrics/{model}/{dataset}/{dialogue}/metrics.parquet",
    log:
        "<logs>/measure/{model}/{dataset}/{dialogue}.log",
    benchmark:
        "<results>/benchmarks/measure/{model}/{dataset}/{dialogue}.tsv"
    conda:
        "../../envs/analysis.yaml"
    resources:
        serial=one_on_a_scheduler,
        # It takes seconds and less than 1 GB.
        runtime=by_attempt(3),
        mem_mb=by_attempt(2000),
    params:
        code=stage_digest("measure"),
    shell:
        'python "$SCRIPTS/measure.py" --turns {input.turns:q} --out {output.metrics:q} '
        "> {log:q} 2>&1"
