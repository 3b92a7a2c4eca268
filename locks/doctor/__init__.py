"""What can be seen of a directory of sessions from outside, and mended without harm: what `lanes doctor` prints."""
