"""Lanes, groups, turns, runs and their bodies."""
