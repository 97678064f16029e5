"""A rendered rover world with labels from geometry, and tiny random networks: for the demo and the tests."""
