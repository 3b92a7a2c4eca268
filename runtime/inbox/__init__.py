"""The durable inbox: messages that were accepted survive the process, and a person may take a day to answer.

`rows` has what is kept and its states; `store` the face of a store, and `sqlite` the one for a single machine, with
its `schema`, its `statements` and the thread that commits them (`writer`). `door` takes messages in and waits for their
ends, `journal` commits what runs do with them, `replay` brings back what a process has left behind.
"""
