"""Commands: `lattica start`, `stop`, `status`; one file per verb, and no protocol of their own."""
