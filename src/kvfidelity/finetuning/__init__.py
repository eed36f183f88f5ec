"""Fine-tuning a model on evicted states, so that it tolerates what an eviction does to positions.

evicted_states: which tokens a query sees, and at which positions, after evictions; no model.
draws: keep sets drawn for training. forward: one forward of a whole dialogue in such a state.
recipe: what a training depends on. extraction: training dialogues out of a data set. examples:
these as token ids, and their file. train: the loop and its checkpoints. model_folder: the product,
a model folder like any other. base_dialogues: what it is evaluated on.
"""
