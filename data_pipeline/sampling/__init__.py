"""The order of samples: a pure function of the config."""
