"""What keeps a run alive, and what ends it in time and with its cause: one file a fault."""
