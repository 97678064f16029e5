"""What a user gives: manifests, pictures, videos, recordings, telemetry, a class of their own, all behind the sample
contract.

`contract` says what a sample is and checks it, `labels` reads a whole split, `user_class` finds the class that a
config names. Imports nothing of networks.
"""
