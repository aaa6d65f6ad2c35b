"""Sending again what was recorded elsewhere or before."""
