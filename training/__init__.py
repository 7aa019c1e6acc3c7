"""Segmenters that learn from captions or from archives."""
