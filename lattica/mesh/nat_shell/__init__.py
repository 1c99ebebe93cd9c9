"""What joins the cores of `mesh/nat` to a peer's sessions and to its UDP sockets.

    traversal   the door: what was found out; begins with nothing
    crossing    what does the work once somebody needs it, and joins all of these
    keyring     keys with others
    measuring   what this machine is behind, by asking others; and answering them
    witnesses   whom to ask (pure)
    network     when an address of this machine changes
    peer_paths  the ways to one other peer
    exchange    what two peers tell each other, as bytes (pure)
    service     what a peer does for others
    sockets     fresh sockets, by number
    dispatch    who gets the datagrams that are not QUIC's
    tcp_punches connections by TCP from the port on which we listen
    records     what was tried (pure)
    words       what people are told (pure)

Nothing here decides anything; the cores do.
"""
