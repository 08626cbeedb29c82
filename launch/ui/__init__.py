"""A web page that runs the commands of the terminal."""
