"""Figures that every sample has a value of, computed with networks of their own: CLIP score and LPIPS."""
