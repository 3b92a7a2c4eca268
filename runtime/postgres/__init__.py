"""Sessions, transcripts and accepted messages on PostgreSQL, for several processes on several machines.

    settings      what a supervisor is given: PostgresStore
    schema        tables and functions, their version, and making them
    functions     the functions of the database, as SQL
    link          the thread that owns the connections: steps in order with group commit, questions, notifications
    life          the node: joins, beats, reaps dead ones; its local deadline
    ownership     which sessions this node conducts: claims, gives back, hands over
    messages      `InboxStore` on it
    transcripts   `TranscriptStore` on it

Who imports whom: down the list, `link` and `life` above the rest. The design and its measurements: docs/cluster.md.
"""
