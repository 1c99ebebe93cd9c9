"""Who may run what, and when: resources and leases. Pure; knows nothing of objects or sockets."""
