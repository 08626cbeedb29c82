"""The kinds of studies: one file each, with a dataclass `Study`."""
