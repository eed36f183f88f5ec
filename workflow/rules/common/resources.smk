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


def one_on_a_scheduler(wildcards):
    """The resource `serial`: on a scheduler a group's jobs run one after another.

    A function, because it is not known before the executor is chosen, after this file is read.
    """
    return int(workflow.non_local_exec)


def gpus():
    """GPUs that jobs may use on one machine: Snakemake's resource `gpu`, 1 if not given."""
    limit = workflow.global_resources.get("gpu").value
    return limit if isinstance(limit, int) and limit > 0 else 1


def generate_threads(wildcards):
    """A machine's cores, shared by the jobs that run at once on it.

    On a scheduler the profile decides: `set-threads: generate=4`.
    """
    cores = workflow.global_resources.get("_cores").value
    session = SETTINGS["session"]
    jobs = gpus() * session["workers_per_gpu"] * session["batch_size"]
    return max(1, cores // jobs) if cores else 4


def model_gpus(wildcards):
    """1, or 0 if the model's device is `cpu`.

    With `auto` the resource `gpu` limits the number of jobs at once, even without a GPU.
    """
    return int(SETTINGS["models"][wildcards.model]["device"] != "cpu")


def generate_gpus(wildcards):
    """0 if several runs share a GPU, so that cores are the limit."""
    return model_gpus(wildcards) if SETTINGS["session"]["batch_size"] == 1 else 0


def training_gpus(wildcards):
    """0 if several processes share a GPU: they wait for a place on it themselves."""
    return model_gpus(wildcards) if SETTINGS["session"]["workers_per_gpu"] == 1 else 0


def training_threads(wildcards):
    """So few that as many trainings as have a place on a GPU can load or write meanwhile, and so many
    that those which wait for one leave cores to runs."""
    workers = SETTINGS["session"]["workers_per_gpu"]
    cores = workflow.global_resources.get("_cores").value
    if workers == 1 or not cores:
        return generate_threads(wildcards)
    places = gpus() * workers * (1 + model_gpus(wildcards))
    return max(1, cores // (places + 1))


def on_gpu(wildcards, rulename):
    """Whether a job's model will be on a GPU; a profile may have set the rule's `gpu`."""
    asked = workflow.get_rule(rulename).resources.get("gpu")
    number = model_gpus(wildcards) if asked.is_evaluable() else asked.value
    limit = workflow.global_resources.get("gpu").value
    number = number if limit is None else min(number, limit)
    return computes_on_gpu(SETTINGS["models"][wildcards.model]["device"], number)


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


def training_minutes(wildcards, attempt, rulename):
    return training_estimate(wildcards, rulename).minutes * attempt


def training_memory(wildcards, attempt, rulename):
    return training_estimate(wildcards, rulename).mem_mb * attempt


def training_estimate(wildcards, rulename):
    folder = PREFIX / f"resources/models/{wildcards.model}"
    gpu = on_gpu(wildcards, rulename)
    return estimate_training(SETTINGS, wildcards.model, folder, on_gpu=gpu)


def extraction_reach(wildcards):
    """What the runs ask of the dialogues, as a resource: no dialogue depends on it."""
    wanted = reach_settings(SETTINGS, wildcards.model, wildcards.dataset)
    return json.dumps(wanted, sort_keys=True)
