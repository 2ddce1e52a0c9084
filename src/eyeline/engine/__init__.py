"""Training: the loop, on Lightning Fabric, and the folder a run leaves."""
