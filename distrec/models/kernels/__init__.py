"""What models compute on the CPU, compiled: each is a function of autograd whose readable form stands in the models."""
