"""A whole run on a GPU that is not there: what a CUDA build of torch finds wrong, and what waits, without a driver."""
