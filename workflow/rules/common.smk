import json
import os
import re
import shlex
import sys
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The folder of the workflow, which is not that of the main Snakefile where another workflow imports
# this one as a module.
HERE = Path(str(workflow.current_basedir.get_path_or_uri(secret_free=True)))
if not HERE.is_dir():
    raise WorkflowError(
        f"error: the workflow is read from {HERE}, but its rules call a library and scripts that come "
        "with it: clone its repository, and name workflow/Snakefile in the clone"
    )
ROOT = HERE.parents[1]
IS_MODULE = not workflow.modifier.is_main_snakefile()
# The `prefix` of a module's paths, for files that are read or written while planning.
PREFIX = Path(str(workflow.modifier.modify_path("resources"))).parent
# The library of this checkout, here and in the scripts that rules start.
LIBRARY = str(ROOT / "src")
sys.path.insert(0, LIBRARY)
for folder in (ROOT, os.getcwd()):
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
    cells,
    runs_by_dialogue,
)
from kvfidelity.pipeline.merge import merge_sources
from kvfidelity.pipeline.preflight import (
    refuse_faulty_inputs,
    same_but_for_their_names,
)
from kvfidelity.pipeline.reach import reach_settings
from kvfidelity.pipeline.settings import (
    check_files,
    laid_over_default,
    load_settings,
    stands_alone,
)
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
    finetuning_params,
    selection_params,
    judge_params,
    grid_settings,
    active_judges,
    merge_settings,
    own_policy,
    needs_likelihood,
    report_settings,
    shows_own_history,
    policy_part,
    session_part,
    threshold_part,
    source_entry,
    table_settings,
    judge_test_params,
    judge_test_pairs,
)
from kvfidelity.models.revision import model_revision
from kvfidelity.pipeline.run_time import write_run_time
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
    # Those of a workflow that imports this one are its own.
    files = [] if IS_MODULE else [Path(file) for file in workflow.configfiles]
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
        changed = [] if MERGED else refresh(SETTINGS, prefix=PREFIX)
        refuse_faulty_inputs(SETTINGS, RESULTS, computes_here=here, prefix=PREFIX)
    except UserError as error:
        raise refused(error) from None
    warnings = [f"warning: {line}" for line in same_but_for_their_names(SETTINGS)]
    for line in changed + warnings:
        print(line, file=sys.stderr)


def merged_files():
    """Artifacts to take from other folders: path below results, and the file."""
    try:
        found = merge_sources(SETTINGS)
        return {name: list(map(str, files)) for name, files in found.items()}
    except UserError as error:
        raise refused(error) from None


def checked_name(given):
    """The name of the run, which says where its results are."""
    try:
        files = [] if IS_MODULE else workflow.overwrite_configfiles
        return run_name(config, given, files)
    except UserError as error:
        raise refused(error) from None


GIVEN = dict(config)
# A configuration that has all sections stands alone; another one is laid over the default.
if IS_MODULE:
    # Snakemake skips `configfile` of a module that is given a configuration.
    config = laid_over_default(config, ROOT / CONFIGURATION)
elif not stands_alone(config):

    configfile: str(workflow_file(CONFIGURATION))


RUN_NAME = checked_name(GIVEN)
RESULTS = PREFIX / results_folder(RUN_NAME)


# What commands call `$SCRIPTS` and `$RESULTS`. The working directory may be elsewhere.
SCRIPTS = Path(os.path.relpath(ROOT), "workflow/scripts")
shell.prefix(
    f"set -euo pipefail; export PYTHONPATH={shlex.quote(LIBRARY)}"
    "${{PYTHONPATH:+:$PYTHONPATH}}; "
    f"SCRIPTS={shlex.quote(str(SCRIPTS))}; RESULTS={shlex.quote(str(RESULTS))}; "
)


# What `<results>` and `<logs>` stand for in the rules' paths.
pathvars:
    results=str(results_folder(RUN_NAME)),
    logs=str(logs_folder(RUN_NAME)),


SETTINGS = checked_settings()
MERGED = merged_files() if SETTINGS["merge"] else {}
# A run's path below a stage's folder, with its wildcards.
RUN = str(Path(*(f"{{{name}}}" for name in RUN_FIELDS)))
RUNS_OF = runs_by_dialogue(SETTINGS)
TURNS_OF = {
    dialogue: [f"<results>/generate/{run}/turns.parquet" for run in runs]
    for dialogue, runs in RUNS_OF.items()
}


# The place of each dialogue in the order of computing: model by model, for a worker that takes turns
# between models loads each of them again and again; then dialogue by dialogue, for the runs of one
# share what precedes their first eviction.
PLACES = {dialogue: place for place, dialogue in enumerate(RUNS_OF)}


def in_order(wildcards):
    """A generate job's priority; jobs of other rules have 0, which is higher."""
    return -PLACES[f"{wildcards.model}/{wildcards.dataset}/{wildcards.dialogue}"]


def with_last_runs(wildcards):
    """The priority of a job that needs a model without a dialogue."""
    of_model = [key for key in PLACES if key.startswith(f"{wildcards.model}/")]
    return -PLACES[of_model[-1]] if of_model else 0


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
    where = place()
    return {run: run_seconds(SETTINGS, run, where) for run in planned_runs()}


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


def one_on_a_scheduler(wildcards):
    """The resource `serial`: on a scheduler a group's jobs run one after another.

    A function, because it is not known before the executor is chosen, after this file is read.
    """
    return int(workflow.non_local_exec)


def model_spec(wildcards):
    return as_parameters(source_entry(SETTINGS["models"][wildcards.model]), "model")


def names_of_models(fine_tuned):
    """A pattern of the models that are fine-tuned here, or of the others, which are fetched."""
    names = [
        re.escape(name)
        for name, entry in SETTINGS["models"].items()
        if (entry["source"] == "adapter") == fine_tuned
    ]
    return "|".join(names) or "(?!)"


def finetuning_spec(wildcards):
    return as_parameters(finetuning_params(SETTINGS, wildcards.model), "finetune")


def made_of(wildcards, section):
    """The base model, or the dataset, that a fine-tuned model is made of."""
    key = {"models": "base", "datasets": "data"}[section]
    name = SETTINGS["models"][wildcards.model]["adapter"][key]
    return Fetched(section, name, SETTINGS[section][name])


def base_folder(wildcards):
    return ancient(str(made_of(wildcards, "models").folder))


def base_record(wildcards):
    return str(made_of(wildcards, "models").record)


def training_data(wildcards):
    return ancient(str(made_of(wildcards, "datasets").folder))


def training_record(wildcards):
    return str(made_of(wildcards, "datasets").record)


def checkpoints(wildcards):
    """The folder of a training's checkpoint."""
    return str(PREFIX / "resources/checkpoints" / wildcards.model)


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


# These are asked for thousands of runs, and differ for few.
@cache
def model_json(model):
    revision = model_revision(SETTINGS["models"][model])
    return json.dumps({"model_revision": revision})


@cache
def policy_json(policy):
    return json.dumps(policy_part(SETTINGS, policy), sort_keys=True)


@cache
def threshold_json(model, dataset, threshold, known):
    """Sizes are in tokens once the dialogues are `known`, which they may become in this process."""
    found = threshold_part(SETTINGS, RESULTS, model, dataset, threshold)
    return json.dumps(found, sort_keys=True)


SESSION_SPEC = json.dumps(session_part(SETTINGS), sort_keys=True)


def model_part(wildcards):
    return model_json(wildcards.model)


def policy_spec(wildcards):
    return policy_json(wildcards.policy)


def threshold_spec(wildcards):
    model, dataset = wildcards.model, wildcards.dataset
    config = RESULTS / "dialogues" / model / dataset / "tokenizer/config.json"
    return threshold_json(model, dataset, wildcards.threshold, config.is_file())


def generation_dtype(wildcards):
    return SETTINGS["models"][wildcards.model]["dtype"]


def generation_device(wildcards):
    return SETTINGS["models"][wildcards.model]["device"]


def judge_spec(wildcards):
    return as_parameters(judge_params(SETTINGS, wildcards.judge), "judge")


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


def comparisons(wildcards):
    return [
        path
        for judge in active_judges(SETTINGS, pairwise=True)
        for path in of_dialogues(f"comparisons/{judge}", "comparisons.parquet")
    ]


def turns_of_dialogue(wildcards):
    """The turns of all runs of a dialogue."""
    dialogue = f"{wildcards.model}/{wildcards.dataset}/{wildcards.dialogue}"
    if dialogue not in TURNS_OF:
        raise WorkflowError(
            f"error: {dialogue} is no dialogue of this configuration: model, dataset, and a number "
            "below datasets.NAME.count with three digits"
        )
    return TURNS_OF[dialogue]


def judged_history(wildcards):
    """Whose replies a judge is shown; the baseline's where runs have histories of their own."""
    return "baseline" if shows_own_history(SETTINGS, wildcards.judge) else "own"


def table_parameters(wildcards):
    """A function, because sizes in tokens are known only after the dialogues are extracted."""
    return json.dumps(table_settings(SETTINGS, RESULTS), sort_keys=True)


def rubric(wildcards):
    return fixed(rubric_file(SETTINGS["judges"][wildcards.judge]["rubric"]))


def fixed(file):
    """The path of a file that comes with the workflow; no prefix of a module counts for it."""
    return str(file.absolute() if IS_MODULE else file)


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
    return [
        f"<results>/{stage}/{run}/{name}" for runs in RUNS_OF.values() for run in runs
    ]


def of_dialogues(stage, name):
    """The files that a stage makes for all dialogues, each of all runs of its dialogue."""
    return [f"<results>/{stage}/{dialogue}/{name}" for dialogue in RUNS_OF]


def verdicts(wildcards):
    return [
        path
        for judge in active_judges(SETTINGS, pairwise=False)
        for path in of_dialogues(f"judge/{judge}", "verdicts.parquet")
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
    folder, manifest = files_of_sizes(model, dataset)
    # Both may come to be while the workflow runs.
    known = (os.path.isdir(folder), os.path.isfile(manifest))
    gpu = on_gpu(wildcards, rulename)
    return estimate_of(
        model, dataset, wildcards.dialogue, wildcards.threshold, gpu, known
    )


@cache
def files_of_sizes(model, dataset):
    """The folder of a model, and the manifest of dialogues."""
    manifest = RESULTS / f"dialogues/{model}/{dataset}/manifest.json"
    return PREFIX / f"resources/models/{model}", manifest


@cache
def estimate_of(model, dataset, dialogue, threshold, gpu, known):
    """The estimate of runs that differ in nothing that it depends on."""
    run = dict(model=model, dataset=dataset, dialogue=dialogue, threshold=threshold)
    return estimate_run(SETTINGS, run, *files_of_sizes(model, dataset), on_gpu=gpu)


def likelihood_minutes(wildcards, attempt, rulename):
    return scoring_estimate(wildcards, rulename).minutes * attempt


def likelihood_memory(wildcards, attempt, rulename):
    return scoring_estimate(wildcards, rulename).mem_mb * attempt


def scoring_estimate(wildcards, rulename):
    folder = PREFIX / f"resources/models/{wildcards.model}"
    gpu = on_gpu(wildcards, rulename)
    return estimate_scoring(SETTINGS, wildcards.model, folder, on_gpu=gpu)


if workflow.is_main_process and IS_MODULE and not workflow.output_settings.dryrun:
    # Snakemake runs `onstart` of the importing workflow alone.
    write_run_time(RESULTS, SETTINGS, gpus())


def fetched_data(wildcards):
    return ancient(str(fetched_dataset(wildcards).folder))


def fetched_record(wildcards):
    return str(fetched_dataset(wildcards).record)


def fetched_dataset(wildcards):
    entry = SETTINGS["datasets"][wildcards.dataset]
    return Fetched("datasets", wildcards.dataset, entry)
