"""Stages that do not depend on a precision: trace, decoder, text encoders, states, preparation."""
