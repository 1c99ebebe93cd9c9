"""One module per simulated world; `lattica.testing.sim` finds them by name."""
