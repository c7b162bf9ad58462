"""Stages that need no precision: trace, decoder, text encoders, states, preparation."""
