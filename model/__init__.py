"""The network and nothing else: it knows nothing of data, training or parallelism."""
