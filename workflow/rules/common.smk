import json
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The library of this checkout, here and in the scripts that rules start.
LIBRARY = str(Path(workflow.basedir) / "src")
sys.path.insert(0, LIBRARY)
for folder in (workflow.basedir, os.getcwd()):
    if set("{}").intersection(str(folder)):
        raise WorkflowError(
            f"error: the folder {folder} has braces in its name, which Snakemake takes for wildcards: "
            "rename it"
        )

from kvfidelity.cache.positions import PositionMode
from kvfidelity.pipeline.adopt import adopt
from kvfidelity.pipeline.timestamps import redate_future_files, date_now
from kvfidelity.pipeline.resources import (
    computes_on_gpu,
    estimate_run,
    estimate_scoring,
)
from kvfidelity.errors import UserError
from kvfidelity.analysis.table_names import REPORTED_TABLES, TABLE_ROWS, table_files
from kvfidelity.pipeline.console import attach
from kvfidelity.pipeline.invocation import write_invocation
from kvfidelity.pipeline.plan_message import Place, plan_message, run_seconds
from kvfidelity.pipeline.planned_jobs import planned_jobs
from kvfidelity.pipeline.planned_runs import write_planned_runs
from kvfidelity.pipeline.code_digest import stage_digest
from kvfidelity.records.grid import (
    RUN_FIELDS,
    RunKey,
    baseline_run_key,
    cells,
    compared_run_keys,
    run_keys,
)
from kvfidelity.pipeline.merge import merge_sources
from kvfidelity.pipeline.preflight import (
    refuse_faulty_inputs,
    same_but_for_their_names,
)
from kvfidelity.pipeline.reach import reach_settings
from kvfidelity.pipeline.settings import check_files, load_settings, stands_alone
from kvfidelity.pipeline.run_folders import (
    logs_folder,
    results_folder,
    run_folders,
    run_name,
)
from kvfidelity.pipeline.reuse import reuse
from kvfidelity.pipeline.sources import Fetched, refresh
from kvfidelity.pipeline.staleness import Expectations
from kvfidelity.pipeline.rule_params import (
    as_parameters,
    selection_params,
    judge_params,
    judge_limits,
    grid_settings,
    active_judges,
    merge_settings,
    own_policy,
    needs_likelihood,
    report_settings,
    shows_own_history,
    generation_parameters,
    source_entry,
    table_settings,
    judge_test_params,
    judge_test_pairs,
)
from kvfidelity.pipeline.termination import announce_sigterm
from kvfidelity.pipeline.workflow_files import (
    CLAIMS,
    CONFIGURATION,
    rubric_file,
    workflow_file,
)
from kvfidelity.worker.gpus import visible_gpus


def refused(error):
    """What is wrong with the configuration or an input, one line each, as Snakemake shows it."""
    lines = str(error).splitlines()
    return WorkflowError("\n".join(f"error: {line}" for line in lines))


def checked_settings():
    """The configuration with its defaults."""
    files = [Path(file) for file in workflow.configfiles]
    try:
        if workflow.is_main_process:
            check_files(files)
        return load_settings(config, " + ".join(map(str, files)) or "config")
    except UserError as error:
        raise refused(error) from None


def check_inputs():
    """Checks before anything is planned. Other machines' jobs may have a GPU that is not here."""
    # With --jobs jobs may run elsewhere; a dry run does not say where they would run.
    here = not workflow.non_local_exec and workflow.resource_settings.nodes is None
    try:
        changed = [] if MERGED else refresh(SETTINGS)
        refuse_faulty_inputs(SETTINGS, RESULTS, computes_here=here)
    except UserError as error:
        raise refused(error) from None
    warnings = [f"warning: {line}" for line in same_but_for_their_names(SETTINGS)]
    for line in changed + warnings:
        print(line, file=sys.stderr)


def merged_files():
    """Artifacts to take from other folders: path below results, and the file."""
    try:
        return {name: str(file) for name, file in merge_sources(SETTINGS).items()}
    except UserError as error:
        raise refused(error) from None


def checked_name(given):
    """The name of the run, which says where its results are."""
    try:
        return run_name(config, given, workflow.overwrite_configfiles)
    except UserError as error:
        raise refused(error) from None


GIVEN = dict(config)
# A configuration that has all sections stands alone; another one is laid over the default.
if not stands_alone(config):

    configfile: str(workflow_file(CONFIGURATION))


RUN_NAME = checked_name(GIVEN)
RESULTS, LOGS = results_folder(RUN_NAME), logs_folder(RUN_NAME)


# What commands call `$SCRIPTS` and `$RESULTS`. The working directory may be elsewhere.
SCRIPTS = Path(os.path.relpath(workflow.basedir), "workflow/scripts")
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={shlex.quote(LIBRARY)}"
    "${{PYTHONPATH:+:$PYTHONPATH}}; "
    f"SCRIPTS={shlex.quote(str(SCRIPTS))}; RESULTS={shlex.quote(str(RESULTS))}; "
)


# What `<results>` and `<logs>` stand for in the rules' paths.
pathvars:
    results=str(RESULTS),
    logs=str(LOGS),


SETTINGS = checked_settings()
MERGED = merged_files() if SETTINGS["merge"] else {}
# A run's path below a stage's folder, with its wildcards.
RUN = str(Path(*(f"{{{name}}}" for name in RUN_FIELDS)))


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
        Path("resources/models"),
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
    return {run: run_seconds(SETTINGS, run, place()) for run in planned_runs()}


if workflow.is_main_process:
    attach(workflow, plan, expected_seconds, RESULTS / "report.html")


if workflow.is_main_process:
    check_inputs()
    if not MERGED:
        others = [folder for folder in run_folders() if folder != RESULTS]
        for folder, number in reuse(SETTINGS, RESULTS, others).items():
            print(
                f"{number} runs are those of {folder}: same settings, code and dialogues",
                file=sys.stderr,
            )
    if adopted := adopt(Expectations(SETTINGS, RESULTS), RESULTS):
        print(adopted, file=sys.stderr)
    # A benchmark that is older than its job's input would rerun the job.
    date_now(RESULTS / "benchmarks")


def model_spec(wildcards):
    return as_parameters(source_entry(SETTINGS["models"][wildcards.model]), "model")


def dataset_spec(wildcards):
    entry = SETTINGS["datasets"][wildcards.dataset]
    return as_parameters(source_entry(entry), "dataset")


def selection_spec(wildcards):
    return as_parameters(selection_params(SETTINGS, wildcards.dataset), "dialogues")


def extraction_reach(wildcards):
    """What the runs ask of the dialogues, as a resource: no dialogue depends on it."""
    wanted = reach_settings(SETTINGS, wildcards.model, wildcards.dataset)
    return json.dumps(wanted, sort_keys=True)


def own_policy_spec(wildcards):
    return json.dumps(own_policy(SETTINGS, wildcards.policy), sort_keys=True)


def policy_check(wildcards):
    """What says that a user-defined policy can be built. It changes only with the policy's runs."""
    own = own_policy(SETTINGS, wildcards.policy)
    return [f"<results>/checks/policies/{wildcards.policy}.json"] if own else []


def generation_spec(wildcards):
    return generation_parameters(SETTINGS, RESULTS, RunKey(**dict(wildcards.items())))


def generation_dtype(wildcards):
    return SETTINGS["models"][wildcards.model]["dtype"]


def generation_device(wildcards):
    return SETTINGS["models"][wildcards.model]["device"]


def judge_spec(wildcards):
    return as_parameters(judge_params(SETTINGS, wildcards.judge), "judge")


def judge_request_limits(wildcards):
    """Limits of requests, as a resource: no verdict depends on them, so a change reruns nothing."""
    return json.dumps(judge_limits(SETTINGS, wildcards.judge), sort_keys=True)


def batch_record(wildcards):
    """The record of the batch that a judge's answers came from, if the judge uses batches."""
    batched = SETTINGS["judges"][wildcards.judge].get("batch")
    return ancient(f"<results>/judge_batches/{wildcards.judge}.json") if batched else []


def judge_test_spec(wildcards):
    return as_parameters(judge_test_params(SETTINGS, wildcards.judge), "test_judge")


def corruption_likelihoods(wildcards):
    needed = needs_likelihood(SETTINGS, wildcards.judge)
    pair = f"{wildcards.model}/{wildcards.dataset}"
    return [f"<results>/corruptions/{pair}/likelihood.parquet"] if needed else []


def judge_tests(pairwise, name):
    return [
        f"<results>/reliability/{judge}/{model}/{dataset}/{name}"
        for judge in active_judges(SETTINGS, pairwise=pairwise)
        for model, dataset in judge_test_pairs(SETTINGS, judge)
    ]


def comparisons():
    return [
        f"<results>/comparisons/{judge}/{run}/comparisons.parquet"
        for judge in active_judges(SETTINGS, pairwise=True)
        for run in compared_run_keys(SETTINGS)
    ]


def baseline_turns(wildcards):
    key = RUN.format(**dict(wildcards.items()))
    return f"<results>/generate/{baseline_run_key(SETTINGS, key)}/turns.parquet"


def baseline_history(wildcards):
    """The turns whose replies a judge is shown, where runs have histories of their own."""
    shown = shows_own_history(SETTINGS, wildcards.judge)
    return [baseline_turns(wildcards)] if shown else []


def table_parameters(wildcards):
    """A function, because sizes in tokens are known only after the dialogues are extracted."""
    return json.dumps(table_settings(SETTINGS, RESULTS), sort_keys=True)


def rubric(wildcards):
    return str(rubric_file(SETTINGS["judges"][wildcards.judge]["rubric"]))


def length_figures():
    """One figure for each dataset as each model's tokenizer sees it."""
    pairs = sorted({(cell.model, cell.dataset) for cell in cells(SETTINGS)})
    return [
        f"<results>/figures/lengths/{model}/{dataset}.svg" for model, dataset in pairs
    ]


def tokenizers():
    """Folders of the tokenizers that the dialogues were extracted with.

    They change only with the dialogues, so a page does not need weights. Merged results have them.
    """
    pairs = sorted({(cell.model, cell.dataset) for cell in cells(SETTINGS)})
    folders = [
        f"<results>/dialogues/{model}/{dataset}/tokenizer" for model, dataset in pairs
    ]
    return [] if MERGED else ancient(folders)


def artifacts(stage, name):
    """The files that a stage makes for all runs."""
    return [f"<results>/{stage}/{run}/{name}" for run in run_keys(SETTINGS)]


def verdicts(wildcards):
    return [
        path
        for judge in active_judges(SETTINGS, pairwise=False)
        for path in artifacts(f"judge/{judge}", "verdicts.parquet")
    ]


def tables_for_report(writer):
    """The tables of a rule; those of Snakemake's own report with their place and what they show."""
    names = {f"<results>/tables/{name}.csv": name for name in REPORTED_TABLES}
    return [
        table_for_report(path, names[path]) if path in names else path
        for path in table_files(writer)
    ]


def table_for_report(path, name):
    """A table with its place and what it shows in Snakemake's own report."""
    return report(
        path,
        caption="../report/table.rst",
        category="Tables",
        labels={"item": f"table {name}", "shows": TABLE_ROWS[name]},
    )


def figure_for_report(figure):
    """A figure's SVG with its place and caption in Snakemake's own report."""
    settings = SETTINGS["report"]
    caption = figure.caption_with(settings["confidence"])
    return report(
        f"<results>/figures/{figure.name}.svg",
        caption="../report/figure.rst",
        category=figure.category,
        labels={"item": f"figure {figure.name}", "shows": caption},
    )


def gpus():
    """GPUs that jobs may use on one machine: Snakemake's resource `gpu`, 1 if not given."""
    limit = workflow.global_resources.get("gpu").value
    return limit if isinstance(limit, int) and limit > 0 else 1


def generate_threads(wildcards):
    """A machine's cores, shared by the jobs that run at once on it.

    On a scheduler the profile decides: `set-threads: generate=4`.
    """
    cores = workflow.global_resources.get("_cores").value
    return max(1, cores // (gpus() * SETTINGS["session"]["batch_size"])) if cores else 4


def model_gpus(wildcards):
    """1, or 0 if the model's device is `cpu`.

    With `auto` the resource `gpu` limits the number of jobs at once, even without a GPU.
    """
    return int(SETTINGS["models"][wildcards.model]["device"] != "cpu")


def generate_gpus(wildcards):
    """0 if several runs share a GPU, so that cores are the limit."""
    return model_gpus(wildcards) if SETTINGS["session"]["batch_size"] == 1 else 0


def on_gpu(wildcards, rulename):
    """Whether a job's model will be on a GPU; a profile may have set the rule's `gpu`."""
    asked = workflow.get_rule(rulename).resources.get("gpu")
    number = model_gpus(wildcards) if asked.is_evaluable() else asked.value
    limit = workflow.global_resources.get("gpu").value
    number = number if limit is None else min(number, limit)
    return computes_on_gpu(SETTINGS["models"][wildcards.model]["device"], number)


def refuse_batches_on_a_scheduler():
    """On a scheduler each job has its own GPU or none, so runs cannot share one."""
    batch_size = SETTINGS["session"]["batch_size"]
    if batch_size > 1 and workflow.non_local_exec:
        raise WorkflowError(
            f"error: session.batch_size is {batch_size}, but a scheduler's jobs run one after the other: run "
            "the workflow itself in one job (docs/cluster.md), or set it to 1"
        )


def one_on_a_scheduler(wildcards):
    """The resource `serial`: on a scheduler a group's jobs run one after another."""
    return int(workflow.non_local_exec)


def by_attempt(amount):
    """Minutes or MB of a job; a later attempt gets more, since they may have been too few."""

    def amount_for_attempt(wildcards, attempt):
        return amount * attempt

    return amount_for_attempt


def generate_minutes(wildcards, attempt, rulename):
    return generate_estimate(wildcards, rulename).minutes * attempt


def generate_memory(wildcards, attempt, rulename):
    return generate_estimate(wildcards, rulename).mem_mb * attempt


def generate_estimate(wildcards, rulename):
    model, dataset = wildcards.model, wildcards.dataset
    manifest = RESULTS / f"dialogues/{model}/{dataset}/manifest.json"
    folder = Path(f"resources/models/{model}")
    run = dict(wildcards.items())
    return estimate_run(
        SETTINGS, run, folder, manifest, on_gpu=on_gpu(wildcards, rulename)
    )


def likelihood_minutes(wildcards, attempt, rulename):
    return scoring_estimate(wildcards, rulename).minutes * attempt


def likelihood_memory(wildcards, attempt, rulename):
    return scoring_estimate(wildcards, rulename).mem_mb * attempt


def scoring_estimate(wildcards, rulename):
    folder = Path(f"resources/models/{wildcards.model}")
    gpu = on_gpu(wildcards, rulename)
    return estimate_scoring(SETTINGS, wildcards.model, folder, on_gpu=gpu)
