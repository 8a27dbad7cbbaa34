"""Policies that plan through a world model, and SB3's views of them."""
