"""Training as a managed job of SkyPilot, on rented nodes or Kubernetes.

settings   the keys of `python -m launch sky`, and of `sky` in a cluster's file
check      what would be refused or lost on nodes whose disks vanish
task       the task that SkyPilot starts
submit     the command: checks, writes, launches
jobs       the jobs of a run, as SkyPilot tells them
ended      on the first node: whether the job starts again
"""
