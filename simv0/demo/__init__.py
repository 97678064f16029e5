"""A rendered rover world with labels from geometry, and tiny random networks: for the demo and the tests.

Imports only the ground and torchvision's repair. Ways in: `world.write_world`, `networks.save_tiny_llm` and
`networks.save_tiny_tower`.
"""
