"""The command line: ``frameattn train | sample | info``."""
