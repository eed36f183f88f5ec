"""The managed KV cache: un-rotated keys, a position per slot, policies that choose what survives.

What lives here: slots and positions (`slots`), tensors (`layers`, `managed`), the attention
function that Hugging Face models call (`attach`), attention in plain torch (`attention`) and in
Triton (`triton`), several caches in one forward (`batch`), attention scores (`scores`), policies
(`policies`), when they are asked (`evictor`), and the log of what they did (`eviction_log`).
What does not: dialogues, chat templates, replies, files.
"""
