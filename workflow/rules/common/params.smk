def model_spec(wildcards):
    return as_parameters(source_entry(SETTINGS["models"][wildcards.model]), "model")


def finetuning_spec(wildcards):
    return as_parameters(finetuning_params(SETTINGS, wildcards.model), "finetune")


def training_dialogues_spec(wildcards):
    chosen = training_dialogues_params(SETTINGS, a_model_of(wildcards))
    return as_parameters(chosen, "training_dialogues")


def checkpoints(wildcards):
    """The folder of a training's checkpoint."""
    return str(PREFIX / "resources/checkpoints" / wildcards.model)


def dataset_spec(wildcards):
    entry = SETTINGS["datasets"][wildcards.dataset]
    return as_parameters(source_entry(entry), "dataset")


def selection_spec(wildcards):
    return as_parameters(selection_params(SETTINGS, wildcards.dataset), "dialogues")


def own_policy_spec(wildcards):
    return json.dumps(own_policy(SETTINGS, wildcards.policy), sort_keys=True)


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


def judge_test_spec(wildcards):
    return as_parameters(judge_test_params(SETTINGS, wildcards.judge), "test_judge")


def judged_history(wildcards):
    """Whose replies a judge is shown; the baseline's where runs have histories of their own."""
    return "baseline" if shows_own_history(SETTINGS, wildcards.judge) else "own"


def table_parameters(wildcards):
    """A function, because sizes in tokens are known only after the dialogues are extracted."""
    return json.dumps(table_settings(SETTINGS, RESULTS), sort_keys=True)
