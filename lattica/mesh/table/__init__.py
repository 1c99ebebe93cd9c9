"""The replicated table: signed rows that every peer holds, verifies and can serve. See docs/protocols/table.md."""
