"""The distributed hash table: who can be reached where, who has what, who cares for what. See docs/protocols/dht.md."""
