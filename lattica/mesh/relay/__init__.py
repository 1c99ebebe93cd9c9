"""How peers that cannot reach each other talk by way of a third, which sees ciphertext (docs/design/0015).

relays                  what one peer has of all this: it relays, or is relayed
service                 a relay's shell              channels, fair_queue    what it decides    ── pure
client, channel         who is relayed               binding                 one end of a channel    ── pure
reservations            by which relays it is called
framed                  datagrams over TLS, where UDP is blocked
"""
