"""Peira: learn policies from experience of any origin."""
