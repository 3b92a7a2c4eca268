"""`lanes bench`: compares locks and lanes with the ones of other libraries, on the user's own machine.

A *peer* is a library's lock or task group, used as its authors recommend (`peers/`). A *question* is what is measured,
such as the cost of a free lock (`questions/`). A *cell* is one peer, on one event loop, at one size of a question; a
cell is measured once per round, and each round measures all cells of a question in turn, so that a slow moment of the
machine hits all peers alike. Each peer runs in processes of its own (`workers`, `worker`): a peer that crashes, hangs
or lets two holders in spoils its own row only. The result is a file (`results`), drawn as text or pictures.

Rejected: measuring all peers in this process. The memory of one would count for the next, and a crash would end all.
"""
