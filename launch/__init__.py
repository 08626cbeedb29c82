"""Where it runs: this machine, a cluster; and the demo of the whole path."""
