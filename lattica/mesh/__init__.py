"""Between machines: who is who, and what two peers say to each other."""
