"""Judge kinds, one file each. A new kind is a new file here; no list of kinds is kept by hand."""
