"""One machine: the node process, its zygotes and its workers. Composes everything below it."""
