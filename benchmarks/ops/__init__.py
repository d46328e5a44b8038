"""One file per operator; it offers `SHAPES`, by name, and `cases(shapes)`, the list of what is measured."""
