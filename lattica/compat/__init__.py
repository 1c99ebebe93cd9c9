"""lattica under other libraries' names, for programs that may not be edited. See docs/compat.md."""
