"""The lock file beside a session, `<file>.lock`: its holder, for people and for gateways that know only such files.

It excludes none of our own processes from each other; the kernel lock on the session file does. It is written while
that lock is held and removed before it is given back, so one that is found under the kernel lock is either what a dead
process of ours left behind, or a foreign program's. `staleness` decides which; `lockfile` takes, reclaims and removes;
`payload` is the format; `turn_note` is the `<file>.turn` that says who conducts the session, for names only.
"""
