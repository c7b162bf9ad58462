"""Schedules: from what was found at each step to the contract, and `ptqd-export schedule`, which adds one to a bundle."""
