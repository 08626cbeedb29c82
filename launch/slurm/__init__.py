"""Training as SLURM jobs: `submit` writes and submits one readable script, `job.sbatch`."""
