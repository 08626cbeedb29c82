"""`python -m launch doctor`: what Headwater would choose on this machine, and why."""
