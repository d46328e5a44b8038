"""One file per operator; it offers `cases(shapes)`, the list of what is measured.

And `SHAPES`, by name, `DEFAULT_SHAPES`, names of these, and `EFFORT`, how often each candidate runs.
"""
