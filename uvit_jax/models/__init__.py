"""The networks: modules that map arrays to arrays, and nothing about data, training or files."""
