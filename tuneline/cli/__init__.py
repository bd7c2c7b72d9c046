"""The command line: a face without logic. Heavy things are imported inside the commands that need them."""
