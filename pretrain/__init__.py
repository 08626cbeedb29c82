"""The training loop on a device mesh."""
