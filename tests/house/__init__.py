"""The rules of the tree itself, and the tests of what the tests share."""
