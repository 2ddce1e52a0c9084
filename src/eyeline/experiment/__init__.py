"""What is tried: the networks, the data, the method and the settings, from names to objects."""
