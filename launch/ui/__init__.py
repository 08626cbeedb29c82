"""A page in the browser for the commands of the terminal."""
