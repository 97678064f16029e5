"""What a user gives: manifests, pictures, videos, recordings, telemetry, a class of their own, all behind the sample
contract.

`contract` says what a sample is; `values` checks each of its values and words the error (`check_label` for a wrong
label). `labels` reads a whole split, `user_class` finds the class that a config names. Imports nothing of networks.
"""
