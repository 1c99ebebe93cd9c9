"""How peers that cannot reach each other talk by way of a third, which sees ciphertext (docs/design/0015).

fair_queue, channels    what a relay decides    ── pure
binding                 one end of a channel, as its owner has it    ── pure
"""
