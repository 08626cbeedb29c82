"""Branches: runs that start from a step of another run, their trunk (`branch_from=<run>@<step>`).

`choice` gives a branch the settings and the recipe of its trunk when its config is composed.
`trunk` finds the trunk's checkpoint, and keeps what the branch needs to know of it. `holds` keeps
that checkpoint from being deleted for as long as the branch needs it.
"""
