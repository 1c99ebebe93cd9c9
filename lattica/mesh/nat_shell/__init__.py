"""What joins the cores of `mesh/nat` to a peer's sessions and to its UDP sockets.

    traversal   one peer's: keys with others, and who gets which datagram
    peer_paths  the ways to one other peer
    exchange    what two peers tell each other, as bytes
    service     what a peer does for others
    sockets     fresh sockets, by number
    dispatch    who gets the datagrams that are not QUIC's
    records     what was tried
"""
