"""The command line: a file a command, its arguments beside what it does."""
