"""Where the tasks and stacks of a run are, for people."""
