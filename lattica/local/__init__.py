"""The wire between the processes of one machine: unix sockets, who reads them, and the page a worker shares."""
