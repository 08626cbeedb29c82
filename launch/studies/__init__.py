"""Studies: questions about pretraining that sets of ordinary runs answer."""
