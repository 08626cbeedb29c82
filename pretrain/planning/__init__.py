"""Plans of memory and layouts, computed before anything is allocated.

`python -m pretrain memory model=danube_1_8b world_size=8` ranks all layouts of 8 GPUs:

    memory          what a rank holds in one layout: 16 bytes per parameter by shards, activations
    layouts         all layouts, each with its best micro-batch, ranked by the share of a step lost
    fake_ranks      shards the model for real, without memory, to count the exact bytes
    command         prints the table

A run with `parallel=auto`, `parallel.micro_batch_tokens=auto` or `parallel.compile=auto` goes
through `auto`, which asks `layouts` and `compile_choice`. `launch plan` uses the same functions.
"""
