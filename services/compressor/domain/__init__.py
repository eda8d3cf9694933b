"""Extraction: text into units, units into scores, scores into what is kept; and which parts of a chat may be touched at all."""
