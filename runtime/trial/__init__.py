"""The harness behind `lanes run`: traffic, model bodies, and the verdict on the files they leave."""
