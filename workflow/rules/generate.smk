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
        recall=f"<results>/generate/{RUN}/recall.parquet",
    log:
        f"<logs>/generate/{RUN}.log",
    conda:
        "../../envs/model.yaml"
    threads: generate_threads
    resources:
        gpu=generate_gpus,
        runtime=generate_minutes,
        mem_mb=generate_memory,
        # A string, because a number would be a limited resource. Slurm has an option named `gpus`.
        worker_gpus=str(gpus()),
        batch_size=str(SETTINGS["session"]["batch_size"]),
        prefix_memory=SETTINGS["session"]["prefix_memory"],
        prefix_disk=SETTINGS["session"]["prefix_disk"],
        store_prefixes=SETTINGS["session"]["store_prefixes"],
        serial=one_on_a_scheduler,
        # No MPI. If this is set, Slurm's plugin starts a group's runs in the job itself. Otherwise each
        # run is a Slurm step, and the worker that has loaded the model ends with that step.
        mpi=0,
    params:
        spec=generation_spec,
        dtype=generation_dtype,
        device=generation_device,
        code=stage_digest("generate"),
    shell:
        'python "$SCRIPTS/generate.py" --spec {params.spec:q} --model-dir {input.model:q} '
        "--dtype {params.dtype:q} --device {params.device:q} --code-digest {params.code:q} "
        "--prefix-memory {resources.prefix_memory:q} --threads {threads} --pool {input.pool:q} "
        "--prefix-disk {resources.prefix_disk:q} --store-prefixes {resources.store_prefixes:q} "
        "--dialogue {wildcards.dialogue:q} --turns {output.turns:q} --evictions {output.evictions:q} "
        "--recall {output.recall:q} --gpus {resources.worker_gpus:q} --batch-size {resources.batch_size:q} > {log:q} 2>&1"
