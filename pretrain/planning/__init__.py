"""Plans memory and chooses layouts before anything is allocated.

`python -m pretrain memory model=danube_1_8b world_size=8` ranks all layouts of 8 GPUs:

    memory          the bytes that a rank needs in one layout, such as state and activations
    layouts         ranks all layouts, each with its best micro-batch, by the speed they lose
    fake_ranks      shards the real model on fake tensors, to count the exact bytes
    command         prints the table

For a run with `parallel=auto`, `parallel.micro_batch_tokens=auto` or `parallel.compile=auto`, the
module `auto` calls `layouts` and `compile_choice`. `launch plan` also uses these modules.
"""
