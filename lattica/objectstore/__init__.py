"""Values in the memory that all processes of a machine share: who holds them, where they lie, what they are called."""
