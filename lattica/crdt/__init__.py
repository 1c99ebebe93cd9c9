"""Data that many change at once and that comes out the same for all: clocks that order it, sums that compare it."""
