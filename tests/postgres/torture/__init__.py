"""Several processes on one database that are killed, stopped, cut off and left without a server; and a judge.

    node      one process: a supervisor with bodies that write down what they do, and a line protocol for its senders
    varied    what it does besides: policies, questions to persons, resets, cancels, schedules; `varied_judge` for those
    drawn     what is sent: to few sessions, to many, over several lanes of one session, and to what is `varied`
    planted   defects of the product, to be seen by the judge
    driver    server, proxies, processes, senders, and what happens to them; all of it drawn from one seed
    judge     what must hold, by SQL and JSON of its own: nothing of the product is asked

By hand, for ten minutes with a seed that is printed: `make torture-cluster`, or
`python -m tests.postgres.torture --seconds 60 --seed 7 --defect early_reap`.
"""
