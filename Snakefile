"""KV Fidelity: what happens to a chat when an LLM's KV cache is evicted."""

import gc

from snakemake.utils import min_version

min_version("9.20")

# A plan is millions of objects that stay; looking through them for cycles was a tenth of its time.
gc.set_threshold(200_000, 50, 50)


report: "workflow/report/workflow.rst"


# Both are counted within a scheduler's job, not over all jobs: a machine's GPUs, and `serial`. On a
# scheduler each rule of a group takes one `serial`, and there is one. So a group's jobs run one
# after another, and the group asks for the resources of its largest member, not for the sum.
resource_scopes:
    gpu="local",
    serial="local",


workflow.global_resources.setdefault("serial", 1)


include: "workflow/rules/common.smk"
include: "workflow/rules/common/inputs.smk"
include: "workflow/rules/common/params.smk"
include: "workflow/rules/common/resources.smk"
include: "workflow/rules/common/outputs.smk"
include: "workflow/rules/common/planning.smk"
include: "workflow/rules/model.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/judge.smk"
include: "workflow/rules/reliability.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/merge.smk"
include: "workflow/rules/engines.smk"


wildcard_constraints:
    model="[^/]+",
    dataset="[^/]+",
    source="[0-9a-f]{8}",
    policy="[^/]+",
    positions="|".join(PositionMode.patterns()),
    threshold="[^/]+",
    seed=r"\d+",
    dialogue=r"\d{3}",
    judge="[^/]+",


# These run on the machine where the workflow was started: they need the network, and judges' answers
# are kept in one file under a lock.
localrules:
    fetch_model,
    fetch_dataset,
    judge,
    compare_replies,
    test_judge,
    test_pairwise_judge,
    merge,


rule all:
    default_target: True
    input:
        rules.report.output,
        length_figures(),
        # Listed although the report needs them: Snakemake does not make a missing file again if the
        # jobs that read it are finished, but a user who deletes a damaged file expects that.
        generated,
        of_dialogues("metrics", "metrics.parquet"),
        verdicts,
        judge_tests(False, "judge_test.parquet"),
        judge_tests(True, "pairs.parquet"),
        comparisons,
        rules.aggregate.output,
        rules.judge_reliability.output,
        rules.claims.output,
        rules.paper_tables.output,
        rules.figures.output,


# `snakemake only_generate` makes what needs a GPU, and its inputs; no judging, no tables.
rule only_generate:
    input:
        generated,


onstart:
    refuse_batches_on_a_scheduler()
    announce_sigterm(lambda: len(workflow.scheduler.running))
    if SETTINGS["session"]["batch_size"] > 1:
        write_planned_runs(SETTINGS, planned_runs())
    write_run_time(RESULTS, SETTINGS, gpus())
    write_invocation(RESULTS, SETTINGS, sys.argv, ROOT)
    if moved := redate_future_files([RESULTS, PREFIX / "resources"]):
        print(
            f"{moved} files were dated in the future (was the clock set back?): they are dated now, "
            "in their order",
            file=sys.stderr,
        )


onsuccess:
    shell('python "$SCRIPTS/stop_worker.py" --ended-well')


onerror:
    shell('python "$SCRIPTS/stop_worker.py"')
    if workflow.non_local_exec:
        # Snakemake leaves out what a scheduler says when it refuses a group's job.
        print(
            "a group that failed without a log of its job was refused by the scheduler: "
            'docs/cluster.md, "When things break", says how to see why',
            file=sys.stderr,
        )
