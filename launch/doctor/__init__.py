"""`python -m launch doctor`: the defaults that Headwater chooses on this machine, with reasons."""
