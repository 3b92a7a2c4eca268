"""Sessions, transcripts and accepted messages on PostgreSQL, for several processes on several machines.

    settings      what a supervisor is given: PostgresStore
    functions/    tables, and the functions of the database, as SQL
    schema        their version, and making them
    connection    how this process connects; step: a statement on its way
    pooler        whether something between lends connections by transaction
    link          the thread that owns the connections: steps in order with group commit, questions
    listening     notifications of other nodes
    life          the node: joins, beats, reaps dead ones; its local deadline
    ownership     which sessions this node conducts: claims (by shares), gives back, hands over
    rows          from rows to what the inbox knows
    messages      `InboxStore` on it; its statements: message_steps, ask_steps
    transcripts   `TranscriptStore` on it; write_lease: nothing comes in between
    commands      what one node asks of others
    node          all of it put together
    by_hand       what an operator looks at and changes

Each imports what stands above it in the list. The design and its measurements: docs/cluster.md.
"""
