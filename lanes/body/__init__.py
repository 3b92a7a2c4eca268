"""What the body of a run sees and uses: its context, session, inbox, events and programs."""
