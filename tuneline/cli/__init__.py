"""The command line: it parses options and prints results. Heavy modules are imported inside the commands."""
