"""Everything a user can choose: one YAML file per choice in Hydra groups, and one per command.

Every folder may import `conf`; it imports none of them. `entry` turns the command line
`python -m <folder> <command> key=value ...` into a checked dataclass. `errors` holds the exception
for bad input and the exit codes. `outputs` decides where a command may write and `files` writes.
"""
