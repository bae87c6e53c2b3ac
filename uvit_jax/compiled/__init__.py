"""Compiled programs, read: what they compute, move and wait for, and how long that takes on a chip."""
