# A file with user-defined policies imports PyTorch, so it is run in a job: a fault in it is named once
# for a policy, not by each run.
rule check_policy:
    output:
        "<results>/checks/policies/{policy}.json",
    log:
        "<logs>/check_policy/{policy}.log",
    conda:
        "../../envs/model.yaml"
    resources:
        serial=one_on_a_scheduler,
        runtime=by_attempt(10),
        mem_mb=by_attempt(2000),
    params:
        spec=own_policy_spec,
    shell:
        'python "$SCRIPTS/check_policy.py" --spec {params.spec:q} --out {output:q} > {log:q} 2>&1'


rule generate:
    input:
        model=ancient("resources/models/{model}"),
        model_record="resources/provenance/models/{model}.json",
        pool="<results>/dialogues/{model}/{dataset}/pool.parquet",
        policy_check=policy_check,
    output:
        turns=f"<results>/generate/{RUN}/turns.parquet",
        evictions=f"<results>/generate/{RUN}/evictions.parquet",
    log:
        f"<logs>/generate/{RUN}.log",
    priority: in_order
    conda:
        "../../envs/model.yaml"
    threads: generate_threads
    resources:
        gpu=generate_gpus,
        runtime=generate_minutes,
        mem_mb=generate_memory,
        serial=one_on_a_scheduler,
        # No MPI. If this is set, Slurm's plugin starts a group's runs in the job itself. Otherwise each
        # run is a Slurm step, and the worker that has loaded the model ends with that step.
        mpi=0,
    params:
        # In parts, so that Snakemake's reason for doing a run again shows the one that changed.
        revision=model_part,
        policy=policy_spec,
        threshold=threshold_spec,
        session=SESSION_SPEC,
        dtype=generation_dtype,
        device=generation_device,
        code=stage_digest("generate"),
    shell:
        'python "$SCRIPTS/generate.py" --spec {params.revision:q} {params.policy:q} '
        "{params.threshold:q} {params.session:q} --model-dir {input.model:q} "
        "--dtype {params.dtype:q} --device {params.device:q} --code-digest {params.code:q} "
        '--run-time "$RESULTS/run_time.json" --threads {threads} --pool {input.pool:q} '
        "--dialogue {wildcards.dialogue:q} --turns {output.turns:q} --evictions {output.evictions:q} "
        "> {log:q} 2>&1"
