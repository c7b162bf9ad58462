"""`ptqd-export build`, stage by stage."""
