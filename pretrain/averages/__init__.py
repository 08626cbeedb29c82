"""Averages of weights: one that a run keeps while it trains, and averages of its checkpoints.

training   ../hooks/ema.py   updates the average, saves it, and validates it
           running           the tensors of the average, on the device or on the host
afterwards command           `python -m pretrain average`: reads its keys, writes its output
           members           the checkpoints to average, and what they must have in common
           weighting         the weight of each checkpoint
           accumulate        the weighted sum, one tensor at a time
           window            `steps=auto`: the window with the lowest held-out loss
           checkpoint        writes a run folder that training continues
"""
