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
    estimate_training,
)
from kvfidelity.errors import UserError
from kvfidelity.analysis.table_names import REPORTED_TABLES, TABLE_ROWS, table_files
from kvfidelity.pipeline.console import attach
from kvfidelity.pipeline.invocation import write_invocation
from kvfidelity.pipeline.job_functions import keep_signatures
from kvfidelity.pipeline.plan_message import Place, plan_message, seconds_of_runs
from kvfidelity.pipeline.planned_jobs import planned_jobs
from kvfidelity.pipeline.planned_runs import write_planned_runs
from kvfidelity.pipeline.code_digest import stage_digest
from kvfidelity.records.grid import (
    GENERATED,
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
    training_dialogues_digest,
    training_dialogues_params,
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
