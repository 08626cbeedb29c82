"""The network, independent of data, training and parallelism.

`config.py` states the shape, `network.py` and `layers.py` build it, `attention/` and `loss.py`
compute attention and the loss, `flops.py` counts parameters and FLOPs, and `families/` converts
from and to Hugging Face models.
"""
