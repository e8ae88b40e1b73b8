"""What lies on a shelf: names, formats, clocks, owners, how a root is opened. No engine."""
