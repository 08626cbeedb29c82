"""What you may choose: one YAML file a choice, in Hydra groups, and one primary config a command.

The ground floor of the house: every folder may import it, it imports none of them.
`entry` turns `python -m <folder> <command> key=value ...` into a checked dataclass;
`errors` holds the one exception for bad input and the exit codes.
"""
