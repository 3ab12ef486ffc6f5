"""Grids: many training runs that differ in one thing each, and their tables."""
