"""Ablation of every part of the method on two models."""
