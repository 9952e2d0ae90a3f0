"""Memory, speed, network and disk of a run, before it begins."""
