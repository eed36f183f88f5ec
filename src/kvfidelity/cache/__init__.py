"""The managed KV cache: un-rotated keys, a position per slot, policies that choose what survives.

Where to look:

- `attach`        makes a Hugging Face model use managed caches; `new_cache`
- `hooks`         how: the attention function, the rotary module, the output logits
- `architectures` what rules a model out by its config; `proof` runs the laws on a `replica`
- `managed`       the cache of one sequence: `update` appends, `attend` attends, `keep` evicts
- `packed`        several of them in one forward
- `tree`          alternative continuations of one of them in one forward
- `slots`         token index and position of every slot
- `positions`     the position modes: what each does
- `layers`        keys and values of one layer
- `ragged`        keep sets of another size in each kv head, and how budgets are shared out
- `ragged_heads`  the cache once they are: `ragged_cpu` on `ragged_layer`, `ragged_gpu` on
                  `flat_layer`
- `rotary`        angles and `rotate`
- `attention`     attention in plain torch, with score sums
- `scores`        attention received by each slot
- `view`          what a policy can look at
- `policies`      one file per policy, or per family
- `evictor`       when a policy evicts, and down to which size
- `healing`       what is done about the gap, one file per healing
- `eviction_log`  what evictions did
- `overflow`      numbers that are not finite
- `triton`        the same computations as kernels on a GPU

Where a key is rotated: on a CPU, `SlotLayer.append` rotates a new key once, and
`SlotLayer.rerotate` rotates all keys again after an eviction that renumbers positions; both call
`rotary.rotate`. On a GPU no rotated key is stored: `triton.prefill.rotate_by` rotates the keys of a
forward with many queries, and the kernel of `triton.decode` rotates each key as it reads it.

Where the threshold is compared: in `Evictor._evict_if_due`.

Not here: dialogues, chat templates, replies, files.
"""
