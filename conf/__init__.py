"""All that a user can configure: one YAML file per command, and one per choice in a Hydra group.

All other folders may import `conf`, which imports none of them. `entry` turns the command line
`python -m <folder> <command> key=value ...` into a checked dataclass. `errors` holds the exception
for bad input and the exit codes. `outputs` decides where a command may write, and `files`
writes them atomically.
"""
