"""The command line: a file a group of commands, each parses, makes one call, prints."""
