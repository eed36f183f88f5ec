def check_inputs():
    """Checks before anything is planned. Other machines' jobs may have a GPU that is not here."""
    # With --jobs jobs may run elsewhere; a dry run does not say where they would run.
    here = not workflow.non_local_exec and workflow.resource_settings.nodes is None
    try:
        changed = [] if MERGED else refresh(SETTINGS, prefix=PREFIX)
        refuse_faulty_inputs(SETTINGS, RESULTS, computes_here=here, prefix=PREFIX)
    except UserError as error:
        raise refused(error) from None
    warnings = [f"warning: {line}" for line in same_but_for_their_names(SETTINGS)]
    for line in changed + warnings:
        print(line, file=sys.stderr)


def planned_runs():
    """Paths of the runs whose generate jobs Snakemake will start."""
    jobs = workflow.dag.needrun_jobs()
    return [
        RunKey(**dict(job.wildcards.items())).path()
        for job in jobs
        if job.rule.name == "generate"
    ]


def place():
    """What computes, as far as is known here."""
    return Place(
        PREFIX / "resources/models",
        RESULTS / "dialogues",
        gpus=len(visible_gpus()),
        jobs=gpus(),
        cores=workflow.global_resources.get("_cores").value,
    )


def plan():
    """What is to be done, on what, how long it takes, what it costs, what is done again and why."""
    planned = planned_jobs(workflow.dag, Expectations(SETTINGS, RESULTS))
    files = " + ".join(os.path.relpath(file) for file in workflow.configfiles)
    which = f"run {RUN_NAME}, into {RESULTS}, configured by {files}"
    return plan_message(SETTINGS, planned, place(), which)


def expected_seconds():
    """What each planned run should take."""
    return seconds_of_runs(SETTINGS, planned_runs(), place())


def refuse_batches_on_a_scheduler():
    """On a scheduler each job has its own GPU or none, so runs cannot share one."""
    batch_size = SETTINGS["session"]["batch_size"]
    if batch_size > 1 and workflow.non_local_exec:
        raise WorkflowError(
            f"error: session.batch_size is {batch_size}, but a scheduler's jobs run one after the other: run "
            "the workflow itself in one job (docs/cluster.md), or set it to 1"
        )


# A workflow that imports this one says itself what it does.
if workflow.is_main_process and not IS_MODULE:
    attach(workflow, plan, expected_seconds, RESULTS / "report.html")


if workflow.is_main_process:
    check_inputs()
    if not MERGED:
        others = [folder for folder in run_folders(PREFIX) if folder != RESULTS]
        for folder, number in reuse(SETTINGS, RESULTS, others).items():
            print(
                f"{number} runs are those of {folder}: same settings, code and dialogues",
                file=sys.stderr,
            )
    if adopted := adopt(Expectations(SETTINGS, RESULTS), RESULTS):
        print(adopted, file=sys.stderr)
    # A benchmark that is older than its job's input would rerun the job.
    date_now(RESULTS / "benchmarks")


if workflow.is_main_process and IS_MODULE and not workflow.output_settings.dryrun:
    # Snakemake runs `onstart` of the importing workflow alone.
    write_run_time(RESULTS, SETTINGS, gpus())


# After all functions of the workflow.
keep_signatures(globals())
