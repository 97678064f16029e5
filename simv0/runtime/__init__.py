"""What this machine is: device and dtype, threads, several processes, what is cached of a hub, torchvision's repair.

Imports the config and the ground (`labels`, `errors`), nothing of data or networks.
"""
