"""Replies token by token.

How a reply is produced:

1. `generate.generate` chooses the first token from the prompt's last hidden state and makes a
   `sequence.SequenceState` for the rest.
2. A `sequence.Decoder` holds the sequences of one batch. It launches decode steps, and before a
   step that may evict it asks the sequence's evictor.
3. A decode step (`sequence.Steps`) feeds each sequence's token and chooses its next one. On a GPU
   it is one CUDA graph (`steps_cudagraph`), elsewhere plain PyTorch (`steps_eager`, which is also
   the reference). `steps.steps_of` chooses between them.

With batch_size 1, `generate` runs the Decoder itself. Otherwise `scheduler.BatchScheduler` runs
several dialogues, each in its own thread: what they feed goes through the model together
(`feeding`), and their replies are decoded together.

`engine` is the loaded model: it feeds tokens into caches and computes logits and NLL. `sampling`
chooses tokens. What a dialogue consists of is in `generation`, what is cached in `cache`.
"""
