"""Domains and their three-state labels: what one is, reading one from any table, masking."""
