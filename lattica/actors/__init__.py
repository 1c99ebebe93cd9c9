"""Remote functions, actors and refs: what a driver or worker process does with them."""
