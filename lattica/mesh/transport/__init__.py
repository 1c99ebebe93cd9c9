"""Ways for bytes between two peers, one interface (`interface`): TCP with TLS 1.3, and memory for tests."""
