"""Starts runs on this machine or a SLURM cluster, plans them, and runs the demo of all stages."""
