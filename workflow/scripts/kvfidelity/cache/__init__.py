"""The managed KV cache: un-rotated keys, a position per slot, policies that choose what survives.

What lives here: slots and positions (`ledger`), tensors (`store`, `managed`), the attention
function that Hugging Face models call (`attach`), attention in plain torch (`kernels`) and in
Triton (`gpu`), several caches in one forward (`lanes`), attention scores (`scores`), policies
(`policies`), when they are asked (`triggers`), and the log of what they did (`log`).
What does not: dialogues, chat templates, replies, files.
"""
