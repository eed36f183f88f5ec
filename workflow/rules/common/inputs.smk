def fetched_data(wildcards):
    return ancient(str(fetched_dataset(wildcards).folder))


def fetched_record(wildcards):
    return str(fetched_dataset(wildcards).record)


def fetched_dataset(wildcards):
    entry = SETTINGS["datasets"][wildcards.dataset]
    return Fetched("datasets", wildcards.dataset, entry)


def names_of_models(fine_tuned):
    """A pattern of the models that are fine-tuned here, or of the others, which are fetched."""
    names = [
        re.escape(name)
        for name, entry in SETTINGS["models"].items()
        if (entry["source"] == "adapter") == fine_tuned
    ]
    return "|".join(names) or "(?!)"


# The digest that names the training dialogues of each fine-tuned model. Trainings of one base that
# differ in their arm or seed alone share a file.
TRAINED_ON = {
    name: training_dialogues_digest(entry["adapter"])
    for name, entry in SETTINGS["models"].items()
    if entry["source"] == "adapter"
}


def a_model_of(wildcards):
    """The fine-tuned model of a job: its own, or the first that is trained on its dialogues."""
    if "model" in wildcards.keys():
        return wildcards.model
    return next(
        name for name, digest in TRAINED_ON.items() if digest == wildcards.digest
    )


def made_of(wildcards, section):
    """The base model, or the dataset, that a fine-tuned model is made of."""
    key = {"models": "base", "datasets": "data"}[section]
    name = SETTINGS["models"][a_model_of(wildcards)]["adapter"][key]
    return Fetched(section, name, SETTINGS[section][name])


def base_folder(wildcards):
    return ancient(str(made_of(wildcards, "models").folder))


def base_record(wildcards):
    return str(made_of(wildcards, "models").record)


def base_dialogues(wildcards, name):
    """A file or folder of what was extracted for a fine-tuned model's base."""
    base = made_of(wildcards, "models").name
    return ancient(f"<results>/dialogues/{base}/{wildcards.dataset}/{name}")


def base_pool(wildcards):
    return base_dialogues(wildcards, "pool.parquet")


def base_manifest(wildcards):
    return base_dialogues(wildcards, "manifest.json")


def base_tokenizer(wildcards):
    return base_dialogues(wildcards, "tokenizer")


def training_data(wildcards):
    return ancient(str(made_of(wildcards, "datasets").folder))


def training_record(wildcards):
    return str(made_of(wildcards, "datasets").record)


def training_dialogues(wildcards):
    return ancient(f"resources/training_dialogues/{TRAINED_ON[wildcards.model]}.json")


def training_dialogues_record(wildcards):
    return f"resources/provenance/training_dialogues/{TRAINED_ON[wildcards.model]}.json"


def policy_check(wildcards):
    """What says that a user-defined policy can be built. It changes only with the policy's runs."""
    own = own_policy(SETTINGS, wildcards.policy)
    return [f"<results>/checks/policies/{wildcards.policy}.json"] if own else []


def batch_record(wildcards):
    """The record of the batch that a judge's answers came from, if the judge uses batches."""
    batched = SETTINGS["judges"][wildcards.judge].get("batch")
    return ancient(f"<results>/judge_batches/{wildcards.judge}.json") if batched else []


def rubric(wildcards):
    return fixed(rubric_file(SETTINGS["judges"][wildcards.judge]["rubric"]))


def fixed(file):
    """The path of a file that comes with the workflow; no prefix of a module counts for it."""
    return str(file.absolute() if IS_MODULE else file)


def corruption_likelihoods(wildcards):
    needed = needs_likelihood(SETTINGS, wildcards.judge)
    pair = f"{wildcards.model}/{wildcards.dataset}"
    return [f"<results>/corruptions/{pair}/likelihood.parquet"] if needed else []


def turns_of_dialogue(wildcards):
    """The turns of all runs of a dialogue."""
    dialogue = f"{wildcards.model}/{wildcards.dataset}/{wildcards.dialogue}"
    if dialogue not in TURNS_OF:
        raise WorkflowError(
            f"error: {dialogue} is no dialogue of this configuration: model, dataset, and a number "
            "below datasets.NAME.count with three digits"
        )
    return TURNS_OF[dialogue]


def tokenizers():
    """Folders of the tokenizers that the dialogues were extracted with.

    They change only with the dialogues, so a page does not need weights. Merged results have them.
    """
    pairs = sorted({(cell.model, cell.dataset) for cell in cells(SETTINGS)})
    folders = [
        f"<results>/dialogues/{model}/{dataset}/tokenizer" for model, dataset in pairs
    ]
    return [] if MERGED else ancient(folders)


# Functions, for thousands of paths are made where a rule is asked for.
def turns_of_all_runs(wildcards):
    return [path for paths in TURNS_OF.values() for path in paths]


def generated(wildcards):
    """The files that stage generate makes for all runs."""
    return [
        f"<results>/generate/{run}/{name}.parquet"
        for name in GENERATED
        for runs in RUNS_OF.values()
        for run in runs
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


def comparisons(wildcards):
    return [
        path
        for judge in active_judges(SETTINGS, pairwise=True)
        for path in of_dialogues(f"comparisons/{judge}", "comparisons.parquet")
    ]


def judge_tests(pairwise, name):
    return [
        f"<results>/reliability/{judge}/{model}/{dataset}/{name}"
        for judge in active_judges(SETTINGS, pairwise=pairwise)
        for model, dataset in judge_test_pairs(SETTINGS, judge)
    ]
