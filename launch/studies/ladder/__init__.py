"""The parts of the study `ladder`: shapes, rules, the target, and what follows from the runs."""
