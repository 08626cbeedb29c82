"""The plan of a run: its layouts, memory, time and cost, before it starts."""
