"""The verbs of the command line: they build parts, hand them over and show progress. Only the CLI calls them."""
