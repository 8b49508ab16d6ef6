"""The command line: words → commands → what a terminal shows."""
