"""The child process that torch runs in, and the parent's side of it."""
