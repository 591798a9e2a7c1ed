"""What Python has beside the command line: functions that take what people have, and results that print as tables."""
