"""A web page that runs the same commands as a terminal."""
