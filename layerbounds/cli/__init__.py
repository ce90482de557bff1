"""The command line: one file for each command, put together in `layerbounds.cli.main`."""
