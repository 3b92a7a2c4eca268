"""Defects to plant, and the means to run a test or a child process with one of them in place (suite G1)."""
