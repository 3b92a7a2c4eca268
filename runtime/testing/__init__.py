"""What tests of handlers use: virtual time, a supervisor in it, fake models, and checks. `lanes.testing` has it all.

It stands above the supervisor, so it is no part of `lanes`; users reach it by that name, since handlers are theirs to
test and `lanes` is what handlers are written with. Nothing in here imports pytest, but the plugin.
"""
