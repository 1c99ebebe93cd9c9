"""Ports of the gateway that lead here: asked for by PCP, NAT-PMP or UPnP, kept while the node runs, given back.

pcp, natpmp      what is said to gateways (RFC 6887, RFC 6886): bytes and nothing else
mapper           pure: which of the ways to ask, when to ask again, what we have
igd              a program of its own that speaks UPnP, by miniupnpc
default_route    who the gateway is
keeper           the shell: sockets, timers, that program
words            what `lattica doctor` says of it
"""
