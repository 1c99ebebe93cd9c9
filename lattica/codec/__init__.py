"""Frames and messages: data only. Nothing here reads a socket, and nothing here pickles."""
