"""Stages that measure the graphs and fit the schedule."""
