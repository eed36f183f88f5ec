"""Random and damaged input from outside; run by `make fuzz`, not by `make test`."""
