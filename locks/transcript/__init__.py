"""A session's transcript: one JSON object per line, appended whole or not at all, read as a whole prefix."""
