"""How good a model is: in training, against tasks, in its own words, and on one page."""
