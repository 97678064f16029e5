"""cache-vis: a dataset and an encoder in, feature files out."""
