"""The network, independent of data, training and parallelism.

`config.py` defines the shape, `network.py` and `layers.py` build the network, `attention/` and
`loss.py` compute attention and the loss, `flops.py` counts parameters and FLOPs, and `families/`
converts to and from Hugging Face models.
"""
