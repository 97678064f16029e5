"""The HDF5 feature file: its identity, reader, writer, shards, and the dataset that training reads from it.

Imports data and, for the identity, the encoder.
"""
