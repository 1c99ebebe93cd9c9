"""Ways through NATs, as pure cores: what there is in between, how two peers open it, which way to take.

    routes      what a datagram can go by, and the effects all of these cores share
    datagrams   the bytes of probes, answers and relayed packets, with their keyed MACs
    behaviour   what this machine is behind
    candidates  where it may be reached
    punching    how two peers become direct; attempts what they say to each other, rounds and salvos what is sent
    paths       which of the ways to one peer carries its packets now; path what is known of one

The shell is `mesh/nat_shell`, over the path socket of `mesh/transport`; it is told in docs/design/0015-paths.md.
"""
