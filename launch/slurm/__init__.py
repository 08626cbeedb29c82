"""Training as SLURM jobs: one file written by `submit` and read by a person, `job.sbatch`."""
