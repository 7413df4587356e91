"""Writes a compressed model in the formats that were asked for, and checks each file."""
