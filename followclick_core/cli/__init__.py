"""The command line's parts. The parser imports nothing heavy, so that --help answers at once."""
