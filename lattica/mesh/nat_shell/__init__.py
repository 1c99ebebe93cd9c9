"""What joins the cores of `mesh/nat` to a peer's sessions and to its UDP sockets.

dispatch    who gets the datagrams that are not QUIC's
"""
