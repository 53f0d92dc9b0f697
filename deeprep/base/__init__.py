"""What everything stands on: input checks, paths, and the processes of a group."""
