"""Data structures of a scheduler: lanes, turns, groups, throttle, timers. No I/O, no hooks, no bodies."""
