rule measure:
    input:
        turns=f"<results>/generate/{RUN}/turns.parquet",
    output:
        metrics=f"<results>/metrics/{RUN}/metrics.parquet",
    log:
        f"<logs>/measure/{RUN}.log",
    benchmark:
        f"<results>/benchmarks/measure/{RUN}.tsv"
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
