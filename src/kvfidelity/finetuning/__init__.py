"""Fine-tuning a model on evicted states, so that it tolerates what an eviction does to positions.

evicted_states: which tokens a query sees, and at which positions, after evictions; no model.
draws: keep sets drawn for training. forward: one forward of a whole dialogue in such a state.
recipe: what a training depends on. examples: training dialogues as token ids. train: the loop and
its checkpoints. model_folder: the product, a model folder like any other.
"""
