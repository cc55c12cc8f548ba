"""The inference core: schedule, run, commit. Importing this package imports no torch."""
